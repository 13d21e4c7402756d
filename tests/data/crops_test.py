"""Image files, tilings, crops and the windows over them."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sttts_jax.data.crops import (
    EVALUATION_CROPS,
    ImageCrops,
    ImageError,
    choose_tiling,
    crop_image,
    evaluation_crops,
    layout_image,
    pool_windows,
    read_image,
)
from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.image import resize

SIZE, GRID, TILE = (378, 378), (27, 27), (266, 266)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coarse, so that it is made at once; odd sizes too."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return small.repeat(4, 0).repeat(4, 1)[:height, :width]


def _canvas(tiling: tuple[int, int]) -> tuple[int, int]:
    return 266 * tiling[0] + 112, 266 * tiling[1] + 112


def _tokens(image: ImageCrops) -> int:
    """Of the block in a prompt."""
    assert image.grid is not None
    rows, columns = image.grid
    return 2 + image.low + 2 + rows * (columns + 1)


@pytest.mark.parametrize(("tiling", "tokens"), [((8, 1), 1400), ((1, 8), 1334), ((2, 4), 1189)])
def test_token_counts_of_molmo2(tiling: tuple[int, int], tokens: int) -> None:
    image = crop_image(_noise(*_canvas(tiling)), SIZE, GRID, 8)
    assert image.crops.shape == (9, 378, 378, 3) and image.low == 196
    assert _tokens(image) == tokens


@pytest.mark.parametrize(
    ("shape", "most", "tiling"),
    [
        ((378, 378), 8, (1, 1)),  # the canvas itself
        ((379, 378), 8, (2, 1)),  # one row of pixels more than a tile
        ((379, 379), 8, (2, 2)),
        ((644, 378), 8, (2, 1)),
        ((2000, 3000), 8, (2, 4)),  # nothing covers it: the least reduction, by 532 / 1888
        ((2000, 3000), 24, (4, 6)),
        ((3000, 2000), 24, (6, 4)),
        ((1000, 8000), 8, (1, 8)),
        ((50, 60), 8, (1, 1)),  # smaller than the margins: room is negative
        ((100, 400), 8, (1, 1)),
        ((112, 400), 8, (1, 2)),  # room of no height
        ((112, 112), 8, (1, 1)),
    ],
)
def test_tilings(shape: tuple[int, int], most: int, tiling: tuple[int, int]) -> None:
    assert choose_tiling((shape[0] - 112, shape[1] - 112), TILE, most) == tiling


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 24))
def test_a_tiling_is_the_best_there_is(height: int, width: int, most: int) -> None:
    rows, columns = choose_tiling((height, width), TILE, most)
    assert rows * columns <= most
    scales = {
        (i, j): min(266 * i / height, 266 * j / width) for i in range(1, 25) for j in range(1, 25) if i * j <= most
    }
    covering = [s for s in scales.values() if s >= 1]
    want = min(covering) if covering else max(scales.values())
    assert scales[rows, columns] == pytest.approx(want, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_every_patch_of_the_large_picture_once(tiling: tuple[int, int], margins: tuple[int, int]) -> None:
    """Where the crops overlap, a patch is taken from the crop that has at least its margin around it."""
    grid, size = (6, 7), (12, 14)
    inner = [n - sum(margins) for n in grid]
    canvas = [2 * (t * n + sum(margins)) for t, n in zip(tiling, inner, strict=True)]
    picture = np.random.default_rng(0).integers(0, 256, (*canvas, 3), dtype=np.uint8)
    image = crop_image(picture, size, grid, tiling[0] * tiling[1], margins)
    assert len(image.crops) == 1 + tiling[0] * tiling[1]
    assert image.grid == tuple(-(-n // 4) for n in canvas)
    high = image.pooling[image.low :].reshape(*image.grid, 2, 2).transpose(0, 2, 1, 3)
    high = high.reshape(2 * image.grid[0], -1)[: canvas[0] // 2, : canvas[1] // 2]
    assert len(np.unique(high)) == high.size == (image.pooling[image.low :] >= 0).sum()
    for (row, column), index in np.ndenumerate(high):
        crop, patch = divmod(int(index), 42)
        y, x = 2 * np.asarray(divmod(patch, 7))
        own = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert crop > 0 and np.array_equal(image.crops[crop, y : y + 2, x : x + 2], own)
        place = divmod(crop - 1, tiling[1])
        for at, n, axis in ((y // 2, 6, 0), (x // 2, 7, 1)):
            assert at >= margins[0] or place[axis] == 0
            assert at < n - margins[1] or place[axis] == tiling[axis] - 1


def test_the_global_crop_is_the_whole_picture_squashed() -> None:
    picture = _noise(500, 900)
    image = crop_image(picture, SIZE, GRID, 8)
    assert np.array_equal(image.crops[0], resize(picture, SIZE))
    alone = crop_image(picture, SIZE, GRID, 0)
    assert alone.grid is None and len(alone.crops) == 1 and alone.low == len(alone.pooling) == 196
    assert np.array_equal(alone.pooling, image.pooling[:196])


def test_windows_of_an_odd_grid() -> None:
    expected = [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert pool_windows(np.arange(9, dtype=np.int32).reshape(3, 3)).tolist() == expected
    assert pool_windows(np.arange(4, dtype=np.int32).reshape(2, 2)).tolist() == [[0, 1, 2, 3]]
    windows = pool_windows(np.arange(729, dtype=np.int32).reshape(27, 27))
    assert windows.dtype == np.int32 and np.bincount((windows >= 0).sum(1)).tolist() == [0, 1, 26, 0, 169]


@pytest.mark.parametrize("most", [0, 1, 8])
@pytest.mark.parametrize("shape", [(40, 50), (500, 900), (1300, 200)])
def test_the_layout_is_known_from_the_size(shape: tuple[int, int], most: int) -> None:
    layout, image = layout_image(shape, SIZE, GRID, most), crop_image(_noise(*shape), SIZE, GRID, most)
    assert (layout.count, layout.grid, layout.low) == (len(image.crops), image.grid, image.low)
    assert np.array_equal(layout.pooling, image.pooling) and layout.patches == image.patches


def test_small_grids_have_no_tiles() -> None:
    assert evaluation_crops((27, 27)) == EVALUATION_CROPS == 24
    assert evaluation_crops((9, 9)) == EVALUATION_CROPS and evaluation_crops((8, 27)) == 0


def test_sizes_that_cannot_work_are_refused() -> None:
    picture = _noise(20, 20)
    for arguments in (((30, 28), (4, 4), 8), ((28, 28), (4, 4), -1)):
        with pytest.raises(ValueError, match="a patch needs whole pixels"):
            crop_image(picture, *arguments)
    with pytest.raises(ValueError, match="none left between margins of 4 and 4; set max_crops=0"):
        crop_image(picture, (32, 32), (8, 8), 8)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_colours_become_rgb(tmp_path: Path) -> None:
    """Transparency is laid on white, as transformers' convert_to_rgb does."""
    rgb = _noise(20, 30)
    alpha = np.full((20, 30), 128, np.uint8)
    alpha[:10] = 0
    picture = Image.fromarray(rgb)
    clear = Image.fromarray(np.dstack([rgb, alpha]))
    grey = picture.convert("L")
    palette = picture.quantize(8)
    (tmp_path / "a.png").write_bytes(_file(picture, "PNG"))
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert np.array_equal(read_image(str(tmp_path / "a.png")), rgb)
    cases = {
        "grey": (_file(grey, "PNG"), np.repeat(np.asarray(grey)[..., None], 3, 2)),
        "one bit": (_file(grey.convert("1"), "PNG"), np.asarray(grey.convert("1").convert("RGB"))),
        "palette": (_file(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "gif": (_file(palette, "GIF", save_all=True, append_images=[grey]), np.asarray(palette.convert("RGB"))),
        "cmyk": (_file(picture.convert("CMYK"), "TIFF"), np.asarray(picture.convert("CMYK").convert("RGB"))),
        "16 bit": (_file(Image.fromarray(np.full((2, 2), 30000, np.uint16)), "PNG"), np.full((2, 2, 3), 117)),
    }
    for name, (data, want) in cases.items():
        assert np.array_equal(read_image(data), want), name
    for data in (_file(clear, "PNG"), _file(Image.fromarray(np.dstack([rgb[..., 0], alpha])), "PNG")):
        seen = read_image(data).astype(int)
        assert (seen[:10] == 255).all()
        want = 255 + (rgb[10:].astype(int) - 255) * 128 / 255
        assert np.abs(seen[10:, :, 0] - want[..., 0]).max() <= 1
    seen = read_image(_file(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert (seen[0, 0] == 255).all() and not (seen == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0], upright[0, 2] = 200, 90
    turn = {
        **{1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1]},
        **{5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1), 8: lambda x: np.rot90(x, -1)},
        **{7: lambda x: x[::-1, ::-1].swapaxes(0, 1)},
    }
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(_file(stored, "PNG", exif=exif)), upright)


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture " * 50)
    jpeg, png = _file(picture, "JPEG"), _file(picture, "PNG")
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    bomb = bytearray(_file(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = (60_000).to_bytes(4) * 2  # width and height, which the header's checksum covers
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    cases: dict[Path | bytes, str] = {
        tmp_path / "none.png": "none.png: no such file",
        tmp_path: "is not a file",
        tmp_path / "empty.png": "empty.png: is empty",
        tmp_path / "text.png": "text.png: cannot be read as an image .not one of JPEG, .*.; it is damaged",
        tmp_path / "cut.jpg": "cut.jpg: cannot be read as an image .image file is truncated",
        b"": "a photo: is empty",
        png[: len(png) // 2]: "a photo: cannot be read as an image",
        png[:100] + bytes(50) + png[150:]: "a photo: cannot be read as an image",
        _file(picture, "EPS"): "a photo: cannot be read as an image",  # Pillow would start Ghostscript
        bytes(bomb): "a photo: .*89,478,485",
    }
    for source, message in cases.items():
        with pytest.raises(ImageError, match=message) as caught:
            read_image(source, None if isinstance(source, Path) else "a photo")
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    with pytest.raises(ImageError, match="<.* bytes>: holds 60 x 60 pixels, more than 3,599; shrink it"):
        read_image(png, limits=DecodeLimits(max_pixels=3599))
