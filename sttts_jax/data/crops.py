"""Image files to what Molmo2 sees of them: the picture squashed to one crop, and overlapping crops of a large one.

    image = crop_image(read_image("photo.jpg"), size=(378, 378), grid=(27, 27), max_crops=8)
    image.crops      # uint8 [n, 378, 378, 3]; crop 0 is the whole picture
    image.pooling    # int32 [P, 4]: the patches of each window, crop * N + n, -1 for none
    image.grid       # windows of the large picture, (rows, columns)

The large picture is resized to tiles of 19 patches and a margin of 4 patches around them, so that neighbouring crops of
27 patches share 8. Each patch of it is taken once, from the crop in whose middle it lies; the patches, stitched to one
grid again, are pooled 2 x 2.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sttts_jax.data.decode_limits import USUAL_LIMITS, DecodeLimits
from sttts_jax.data.files import open_file, source_name
from sttts_jax.data.image import resize
from sttts_jax.data.record import RecordError
from sttts_jax.data.rgb import FORMATS, UnknownRange, to_rgb
from sttts_jax.data.schema import POOL

EVALUATION_CROPS = 24  # most tiles of an image, beside the global crop; training has data.max_crops
MARGINS = (4, 4)  # patches that a crop shares with its neighbours, before and after its own


class ImageError(RecordError):
    """A file that cannot be used as an image: one sentence, the file's name first."""


@dataclass(frozen=True)
class ImageLayout:
    """How an image is cut, which follows from its size alone.

    tiling   rows and columns of tiles, (0, 0) for the global crop alone
    grid     of the high-resolution windows (rows, columns), None for the global crop alone
    pooling  int32 [P, 4], the global crop's windows first, patch crop * N + n or -1
    patches  N
    """

    tiling: tuple[int, int]
    grid: tuple[int, int] | None
    pooling: np.ndarray
    patches: int

    @property
    def count(self) -> int:
        """Crops, the global one among them."""
        return 1 + self.tiling[0] * self.tiling[1]

    @property
    def low(self) -> int:
        """Windows of the global crop."""
        return len(self.pooling) - (0 if self.grid is None else self.grid[0] * self.grid[1])


@dataclass(frozen=True)
class ImageCrops(ImageLayout):
    """An image, cut: crops uint8 [n, h, w, 3], the global one first."""

    crops: np.ndarray


def read_image(source: str | Path | bytes, name: str | None = None, limits: DecodeLimits = USUAL_LIMITS) -> np.ndarray:
    """uint8 [h, w, 3] of a file (path or its bytes), upright as its EXIF says, as `rgb.to_rgb` sees it; of several
    pictures the first. `name` says in errors what the bytes are.

    Raises ImageError, one sentence with the name and the cause, for whatever is not a whole image of at most
    `limits.max_pixels`.
    """
    name = source_name(source, name)
    if source == b"":
        raise ImageError(f"{name}: is empty")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_file(source, name, ImageError) as file:
            return _pixels(file, name, limits)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name}: holds more than {limits.max_pixels:,} pixels, or than Pillow opens; shrink it"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name}: asks for more memory than there is; shrink it, or free some memory") from error
    except Exception as error:  # damaged files make Pillow raise nearly everything
        known = not isinstance(error, UnidentifiedImageError)
        cause = " ".join(str(error).split()) if known else f"not one of {', '.join(FORMATS)}"
        raise ImageError(
            f"{name}: cannot be read as an image ({cause}); it is damaged, cut short or of another kind"
        ) from error


def _pixels(file: BinaryIO, name: str, limits: DecodeLimits) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > limits.max_pixels:
            raise ImageError(
                f"{name}: holds {image.width} x {image.height} pixels, more than {limits.max_pixels:,}; shrink it, or "
                "raise data.max_pixels"
            )
        try:
            return to_rgb(ImageOps.exif_transpose(image), getattr(image, "tag_v2", {}))
        except UnknownRange as error:
            raise ImageError(f"{name}: cannot be shown, {error}") from error


def evaluation_crops(grid: tuple[int, int]) -> int:
    """Most tiles of an image when nothing else is asked for: EVALUATION_CROPS, and 0 where a crop of so few patches is
    nothing but margins.
    """
    return EVALUATION_CROPS if min(grid) > sum(MARGINS) else 0


def crop_image(
    image: np.ndarray,
    size: tuple[int, int],
    grid: tuple[int, int],
    max_crops: int,
    margins: tuple[int, int] = MARGINS,
) -> ImageCrops:
    """uint8 [h, w, 3] -> its crops as `layout_image` says. Raises as that."""
    layout = layout_image(image.shape[:2], size, grid, max_crops, margins)
    crops = [resize(image, size)]
    if layout.grid is not None:
        tile = _tile_pixels(size, grid, margins)
        height, width = (n * t + s - t for n, t, s in zip(layout.tiling, tile, size, strict=True))
        canvas = resize(image, (height, width))
        corners = [(tile[0] * i, tile[1] * j) for i in range(layout.tiling[0]) for j in range(layout.tiling[1])]
        crops += [canvas[y : y + size[0], x : x + size[1]] for y, x in corners]
    return ImageCrops(**vars(layout), crops=np.stack(crops))


def layout_image(
    shape: tuple[int, ...],
    size: tuple[int, int],
    grid: tuple[int, int],
    max_crops: int,
    margins: tuple[int, int] = MARGINS,
) -> ImageLayout:
    """How an image of `shape` pixels (h, w) is cut to `size` pixels and `grid` patches: to the global crop and up to
    `max_crops` tiles.

    0 gives the global crop alone. `margins` in patches, before and after. Raises ValueError where they leave no tile.
    """
    if max_crops < 0 or size[0] % grid[0] or size[1] % grid[1]:
        raise ValueError(
            f"cannot crop to {size[0]} x {size[1]} pixels in {grid[0]} x {grid[1]} patches, max_crops={max_crops}: "
            "a patch needs whole pixels, and max_crops must not be negative"
        )
    patches = np.arange(grid[0] * grid[1], dtype=np.int32).reshape(grid)
    low = pool_windows(patches)
    if not max_crops:
        return ImageLayout((0, 0), None, low, patches.size)
    tile = _tile_pixels(size, grid, margins)
    tiling = choose_tiling((shape[0] - size[0] + tile[0], shape[1] - size[1] + tile[1]), tile, max_crops)
    stitched = _stitch(tiling, grid, margins) + patches.size
    high = pool_windows(stitched)
    rows, cols = (-(-n // p) for n, p in zip(stitched.shape, POOL, strict=True))
    return ImageLayout(tiling, (rows, cols), np.concatenate([low, high]), patches.size)


def choose_tiling(room: tuple[int, int], tile: tuple[int, int], max_crops: int) -> tuple[int, int]:
    """(rows, columns) of tiles, at most `max_crops`: the smallest enlargement with which the tiles cover `room` pixels,
    else the least reduction; of equals the fewest tiles, then the fewest rows.

    `room` is the image less the margins, and may be negative. float32 as in Molmo2, so that ties are the same.
    """
    sides = range(1, max_crops + 1)
    tilings = sorted(((i, j) for i in sides for j in sides if i * j <= max_crops), key=lambda t: (t[0] * t[1], t[0]))
    with np.errstate(divide="ignore"):
        scale = (np.asarray(tilings, np.float32) * np.asarray(tile, np.float32) / np.asarray(room, np.float32)).min(1)
    if (scale < 1).all():
        return tilings[int(scale.argmax())]
    return tilings[int(np.where(scale < 1, np.float32(1e10), scale).argmin())]


def pool_windows(index: np.ndarray) -> np.ndarray:
    """int32 [rows, cols] patch indices -> [P, 4], windows of 2 x 2, row-major inside and over them.

    An odd side gets one more line of -1 at its end.
    """
    (a, b), (height, width) = POOL, index.shape
    down, across = -height % a, -width % b
    padded = np.pad(
        index, ((down // 2, down - down // 2), (across // 2, across - across // 2)), constant_values=np.int32(-1)
    )
    rows, cols = padded.shape[0] // a, padded.shape[1] // b
    return padded.reshape(rows, a, cols, b).transpose(0, 2, 1, 3).reshape(rows * cols, a * b)


def _tile_pixels(size: tuple[int, int], grid: tuple[int, int], margins: tuple[int, int]) -> tuple[int, int]:
    if min(margins) < 0 or min(grid) <= sum(margins):
        raise ValueError(
            f"a crop of {grid[0]} x {grid[1]} patches has none left between margins of {margins[0]} and {margins[1]}; "
            "set max_crops=0 for the global crop alone"
        )
    inner = [n - sum(margins) for n in grid]
    return inner[0] * size[0] // grid[0], inner[1] * size[1] // grid[1]


def _stitch(tiling: tuple[int, int], grid: tuple[int, int], margins: tuple[int, int]) -> np.ndarray:
    """int32 [rows, cols] of the large picture: the patch tile * N + n that shows each of its patches."""
    index = np.arange(np.prod(tiling) * np.prod(grid), dtype=np.int32).reshape(*tiling, *grid)

    def own(place: int, axis: int) -> slice:
        return slice(margins[0] if place else 0, grid[axis] - (margins[1] if place < tiling[axis] - 1 else 0))

    return np.block([[index[i, j, own(i, 0), own(j, 1)] for j in range(tiling[1])] for i in range(tiling[0])])
