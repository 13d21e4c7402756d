"""Rows and scores that the tests of pruning share."""

from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.frame_rows import FrameRows

Item = tuple[str, int]  # ("video" | "image", frames)


def frame_rows(*rows: Sequence[Item], frames: int) -> FrameRows:
    """[B, F] from the items of each row; the rest is padding."""
    item = np.full((len(rows), frames), -1, np.int32)
    video = np.zeros((len(rows), frames), bool)
    for row, items in enumerate(rows):
        start = 0
        for index, (kind, count) in enumerate(items):
            item[row, start : start + count] = index
            video[row, start : start + count] = kind == "video"
            start += count
        assert start <= frames
    return FrameRows(jnp.asarray(item), jnp.asarray(video))


def spans(items: Sequence[Item]) -> list[tuple[str, slice]]:
    """The frames of each item of a row."""
    starts = np.cumsum([0, *(count for _, count in items)])
    return [(kind, slice(start, start + count)) for (kind, count), start in zip(items, starts[:-1], strict=True)]


def kept_of(items: Sequence[Item], fraction: Fraction, cells: int) -> int:
    """Survivors of a row."""
    return sum(n_kept(count, fraction, cells) if kind == "video" else count * cells for kind, count in items)


def scores_like(pattern: str, frames: int, cells: int, seed: int = 0) -> np.ndarray:
    """float32 [F, C]: survivors spread evenly, all in a few frames, or just over half of every frame they reach."""
    noise = np.random.default_rng(seed).standard_normal((frames, cells)).astype(np.float32)
    if pattern == "uniform":
        return noise
    if pattern == "bursty":
        return noise + 100.0 * (np.arange(frames) % 2)[:, None]
    if pattern == "adversarial":  # bins waste most: no two frames share one
        return noise + 100.0 * (np.arange(cells) <= cells // 2)
    raise ValueError(pattern)
