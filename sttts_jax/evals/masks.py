"""Masks of kept cells as text, for files of predictions and pages."""

import base64
import math

import numpy as np


def pack_mask(keep: np.ndarray) -> str:
    """bool, any shape -> text, a bit a cell."""
    return base64.b64encode(np.packbits(keep.reshape(-1)).tobytes()).decode("ascii")


def unpack_mask(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_mask`: bool of that shape."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=math.prod(shape))
    return bits.astype(bool).reshape(shape)
