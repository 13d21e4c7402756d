"""Frames as one picture: those of a video side by side, videos below each other."""

from collections.abc import Iterable, Sequence

import numpy as np

from sttts_jax.data.image import resize


def thumbnails(frames: np.ndarray, height: int) -> np.ndarray:
    """uint8 [F, h, w, 3] -> uint8 [F, height, w', 3], the aspect ratio kept."""
    size = (height, max(1, round(frames.shape[2] * height / frames.shape[1])))
    return np.stack([resize(frame, size) for frame in frames])


def film_strip(frames: Iterable[np.ndarray], gap: int = 0) -> np.ndarray:
    """F frames uint8 [h, w, 3] side by side: [h, F (w + gap), 3], `gap` white pixels after each."""
    return np.concatenate([np.pad(x, ((0, 0), (0, gap), (0, 0)), constant_values=255) for x in frames], axis=1)


def stack_strips(strips: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Strips uint8 [h, w, 3] below each other, `gap` white pixels after each, and white beside the shorter ones."""
    width = max(strip.shape[1] for strip in strips)
    wide = [np.pad(x, ((0, gap), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in strips]
    return np.concatenate(wide, axis=0)
