"""Pixels the way Molmo2 sees them: squashed to the model's size, bilinear, without antialiasing.

A high-quality resize (area, bicubic, antialiased) visibly changes what the network was trained on, so this one
reproduces `interpolate(mode="bilinear", align_corners=False, antialias=False)` on float32, then rounds half to even
and clips to uint8. Normalisation happens on the device (`models.vlm`): x / 255 * 2 - 1.
"""

from functools import lru_cache

import numpy as np

WIDE = 8  # times the width asked for: from here on unused columns are cut out first


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [size[0], size[1], c]; the aspect ratio is not kept. Half-pixel centres."""
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"resize needs a non-empty uint8 image [h, w, c], got {image.dtype} {list(image.shape)}")
    if image.shape[:2] == tuple(size):
        return image.copy()
    top, bottom, down = _taps(image.shape[0], size[0])
    left, right, across = _taps(image.shape[1], size[1])
    if image.shape[1] > WIDE * size[1]:  # whole rows of it would take many times what is looked at
        columns, place = np.unique(np.concatenate([left, right]), return_inverse=True)
        image, (left, right) = image[:, columns], np.split(place, 2)
    down, across = down[:, None, None], across[:, None]

    def row(index: np.ndarray) -> np.ndarray:
        line = image[index]
        return line[:, left] * (1 - across) + line[:, right] * across

    mixed = row(top) * (1 - down) + row(bottom) * down
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output pixel: the two input pixels and the float32 share of the second."""
    scale = np.float32(source) / np.float32(target)
    at = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.minimum(at.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), at - low.astype(np.float32)
