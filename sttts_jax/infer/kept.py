"""What a checkpoint kept of one video, as plain data: no model, no JAX. Pages and pictures are drawn from it."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ScoreView:
    """One video and what a checkpoint kept of it.

    Shapes: F frames, gh x gw cells of a frame, row-major. `frames` may have any size, best in the aspect
    ratio of the video: the cells are laid over the whole frame.
    """

    video: str  # what the page is called after, usually the file name
    frames: np.ndarray  # uint8 [F, h, w, 3], RGB
    times: np.ndarray  # float [F], seconds
    keep: np.ndarray  # bool [F, gh, gw]
    fraction: float  # share of the cells that the run removes, 0 to 1
    method: str  # name of the selection: scorer, random, ...
    checkpoint: str  # where the weights come from, as text
    scores: np.ndarray | None = None  # float [F, gh, gw] in [0, 1]; None for methods that have none
    question: str | None = None
    answer: str | None = None  # of the model
    truth: str | None = None  # the right answer, where it is known
    facts: Mapping[str, str] = field(default_factory=dict)  # more lines for the foot of the page

    def __post_init__(self) -> None:
        frames, keep = np.asarray(self.frames), np.asarray(self.keep)
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"frames must be uint8 [F, h, w, 3] with F >= 1, not {frames.dtype} {list(frames.shape)}")
        if keep.ndim != 3 or keep.dtype != np.bool_ or len(keep) != len(frames) or not keep.size:
            raise ValueError(f"keep must be bool [{len(frames)}, gh, gw], not {keep.dtype} {list(keep.shape)}")
        if np.shape(self.times) != (len(frames),):
            raise ValueError(f"times must be [{len(frames)}] seconds, one a frame, not {list(np.shape(self.times))}")
        if self.scores is not None:
            scores = np.asarray(self.scores)
            if scores.shape != keep.shape:
                raise ValueError(f"scores must be {list(keep.shape)} like keep, not {list(scores.shape)}")
            if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1):
                raise ValueError("scores must be finite and from 0 to 1; pass them after the sigmoid")

    @property
    def shares(self) -> np.ndarray:
        """Kept share of every frame: float [F]."""
        return self.keep.mean(axis=(1, 2))


def pack_mask(keep: np.ndarray) -> str:
    """bool, any shape -> text, a bit a cell."""
    return base64.b64encode(np.packbits(keep.reshape(-1)).tobytes()).decode("ascii")


def unpack_mask(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_mask`: bool of that shape."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=math.prod(shape))
    return bits.astype(bool).reshape(shape)
