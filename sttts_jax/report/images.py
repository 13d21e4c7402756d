"""Pictures for the pages: frames with dropped cells dimmed, score maps, and their encoding as data URIs.

Cells lie on a grid over the whole frame, so a frame of any size can be drawn with the masks of a model that saw it
squashed.
"""

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

# A dropped cell keeps this much of its brightness, without colour, over the page's darkest tone.
DIM = 0.26
DARKEST = np.array([16.0, 18.0, 22.0])
GRID_ALPHA = 0.18
QUALITIES = (84, 72)  # of JPEG files, the better first

# Anchors of a perceptually even dark-to-light map (magma of Matplotlib, CC0), low score first.
_ANCHORS = np.array(
    [
        [0, 0, 4],
        [28, 16, 68],
        [79, 18, 123],
        [129, 37, 129],
        [181, 54, 122],
        [229, 89, 100],
        [251, 135, 97],
        [254, 194, 135],
        [252, 253, 191],
    ],
    dtype=np.float64,
)


def heat_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours of scores: float [...] -> uint8 [..., 3]; `low` and below is the dark end, `high` and above the light."""
    span = max(high - low, 1e-12)
    at = np.clip((np.asarray(values, np.float64) - low) / span, 0, 1) * (len(_ANCHORS) - 1)
    left = np.minimum(at.astype(int), len(_ANCHORS) - 2)
    part = (at - left)[..., None]
    return np.rint(_ANCHORS[left] * (1 - part) + _ANCHORS[left + 1] * part).astype(np.uint8)


def cell_edges(pixels: int, cells: int) -> np.ndarray:
    """Where `cells` cells begin and end on `pixels` pixels: int [cells + 1]; every pixel belongs to one cell."""
    return np.rint(np.arange(cells + 1) * pixels / cells).astype(int)


def expand(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """A value a cell -> a value a pixel: [gh, gw, ...] -> [height, width, ...]."""
    rows = np.repeat(np.arange(cells.shape[0]), np.diff(cell_edges(height, cells.shape[0])))
    columns = np.repeat(np.arange(cells.shape[1]), np.diff(cell_edges(width, cells.shape[1])))
    return cells[rows][:, columns]


def resize(frame: np.ndarray, width: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [h', width, 3] with its aspect ratio kept."""
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def dim_dropped(frame: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Kept cells as they are, dropped cells grey and dark, a thin grid over all: uint8 [h, w, 3], bool [gh, gw]."""
    height, width = frame.shape[:2]
    pixels = frame.astype(np.float64)
    grey = (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]
    mask = expand(keep, height, width)[..., None]
    shown = np.where(mask, pixels, DARKEST + grey * DIM)
    rows, columns = cell_edges(height, keep.shape[0])[1:-1], cell_edges(width, keep.shape[1])[1:-1]
    if min(height / keep.shape[0], width / keep.shape[1]) >= 8:  # on smaller cells a grid would hide the picture
        shown[rows] *= 1 - GRID_ALPHA
        shown[:, columns] *= 1 - GRID_ALPHA
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """uint8 [h, w, 3] as a JPEG file. High quality keeps the colour planes whole, so that cell edges stay sharp."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 70 else 2)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    """uint8 [h, w, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(file: bytes, kind: str) -> str:
    """The bytes of a `kind` ('jpeg' or 'png') file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def heat_uri(values: np.ndarray, low: float, high: float) -> str:
    """One pixel a cell, float [gh, gw]; the page scales it up without smoothing."""
    return data_uri(png(heat_colours(values, low, high)), "png")


def jpegs_within(
    budget: int, draw: Callable[[int], Sequence[np.ndarray]], widths: Sequence[int]
) -> tuple[list[str], int]:
    """Encodes the pictures `draw(width)` at the largest width, then the best quality, that stay within `budget` bytes.

    Returns their data URIs and the width. The smallest width at the lowest quality is taken even if it is over budget.
    """
    for width in widths:
        pictures = draw(width)
        tries = ([jpeg(picture, quality) for picture in pictures] for quality in QUALITIES)
        files = next((files for files in tries if sum(map(len, files)) * 4 // 3 <= budget), None)
        if files is not None:
            return [data_uri(file, "jpeg") for file in files], width
    return [data_uri(jpeg(picture, 50), "jpeg") for picture in pictures], width
