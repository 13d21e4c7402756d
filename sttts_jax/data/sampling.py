"""Which moments of a video are looked at."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sttts_jax.pruning.budget import MOST_FRAMES

RULES = ("molmo2", "transformers")


@dataclass(frozen=True)
class FrameSampling:
    """How frames of a video are chosen.

    max_frames    the most frames of a video
    max_fps       the most frames of a second; None: `max_frames` equal steps, however short the video
    rule          "molmo2": uniform, the last frame included, as Molmo2 was trained (`times`); "transformers": as its
                  processor there does, which leaves out the end (`indices`)

    Raises ValueError for an unknown rule and for what are no positive numbers.
    """

    max_frames: int
    max_fps: float | None = None
    rule: str = "molmo2"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"sampling={self.rule!r} is unknown; choose one of {', '.join(RULES)}")
        frames: Any = self.max_frames
        rate: Any = self.max_fps
        if isinstance(frames, bool) or not isinstance(frames, int) or not 1 <= frames <= MOST_FRAMES:
            raise ValueError(f"max_frames={frames!r} must be positive and whole, at most {MOST_FRAMES:,}")
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise ValueError(f"max_fps={rate!r} must be positive and finite, or None for max_frames equal steps")

    def times(self, duration: float) -> np.ndarray:
        """Times in seconds, float64 [F], for a clip of `duration` seconds; the last one is `duration` itself.

        A grid of `max_fps` while that needs at most `max_frames` frames, else `max_frames` equal steps over
        [0, duration]. 0 s gives one time. A clip shorter than a step gives two times, which may show the same picture:
        nothing is deduplicated. Raises ValueError unless 0 <= duration < infinity.
        """
        _check_duration(duration)
        if duration == 0:
            return np.zeros(1)
        if self.max_fps is None or (self.max_frames - 1) / self.max_fps < duration:
            return np.linspace(0, duration, self.max_frames)
        grid = np.arange(int(duration * self.max_fps) + 1) / self.max_fps
        return np.append(grid[grid < duration - 1e-9], duration)

    def indices(self, total: int, duration: float) -> np.ndarray:
        """Which of `total` frames in `duration` seconds transformers' Molmo2VideoProcessor takes, int64 [F], ascending.

        int(duration * max_fps) frames, but no more than `max_frames`, at equal steps from the first on, the end
        excluded; a video of at most `max_fps` gives `max_frames`, or all that it has. (Rounding there at times adds an
        index past the end, which cannot be read and is left out here.) Raises ValueError as `times`.
        """
        _check_duration(duration)
        wanted = self.max_frames
        if self.max_fps is not None and total > self.max_fps * duration:
            wanted = min(wanted, int(duration * self.max_fps))
        wanted = max(min(wanted, total), 1)
        # float32 as there, so that a step that is no binary fraction is cut to the same whole numbers.
        return (np.arange(wanted) * (total / wanted)).astype(np.float32).astype(np.int64)


def _check_duration(duration: float) -> None:
    if not 0 <= duration < float("inf"):
        raise ValueError(f"cannot sample frames of {duration} seconds: give a duration from 0 up")
