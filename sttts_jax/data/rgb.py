"""Opened pictures of any mode as uint8 RGB."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # nothing that starts another program
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO = 0
SIGNED = 2  # sample format
DEEP = ("I", "F")  # modes with more than eight bits a sample begin so


class UnknownRange(ValueError):
    """Samples of which nobody says what is black and what is white: a sentence with the cause."""


def to_rgb(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """uint8 [h, w, 3]; transparency on white. Samples of 9 to 32 bits are scaled from their whole range to 0..255,
    floats from 0..1; colours of eight bits become RGB as transformers' `convert_to_rgb` does it. `tags` are a TIFF's.

    Raises UnknownRange for signed samples and for floats outside of 0..1.
    """
    if image.mode.startswith(DEEP):
        return _scaled(image, tags)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return np.array(image.convert("RGB"))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def _scaled(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """A grey picture of deep samples, uint8 [h, w, 3]."""
    values = np.array(image)
    bits, kind = (int(np.ravel(tags.get(tag, usual))[0]) for tag, usual in ((BITS_PER_SAMPLE, 16), (SAMPLE_FORMAT, 1)))
    floats = values.dtype.kind == "f"
    known = bool(values.min() >= 0 and values.max() <= 1) if floats else kind != SIGNED
    if not known:
        raise UnknownRange("its samples are signed, or floats outside of 0..1; save it with 8 or 16 bits a sample")
    wide = np.float64 if bits > 16 and not floats else np.float32
    unsigned = values.astype(np.uint32) if wide is np.float64 else values  # Pillow reads 32 bits as signed ones
    grey: np.ndarray = unsigned.astype(wide)
    np.multiply(grey, 255 if floats else 255 / (2**bits - 1), out=grey)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        np.subtract(255, grey, out=grey)
    clear = image.info.get("transparency")  # of a 16-bit grey PNG: the one grey that is transparent
    if isinstance(clear, int):
        grey[values == clear] = 255
    return np.repeat(np.rint(grey, out=grey).astype(np.uint8)[..., None], 3, axis=2)
