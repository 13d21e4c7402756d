"""What the pages show, as plain data: no model, no JAX. `look` and `runs` fill these in; `page` draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sttts_jax.evals.accuracy import Accuracy


@dataclass(frozen=True)
class Turn:
    """A question about a video, what the model said, and the right answer, where they are known."""

    question: str
    answer: str | None = None
    truth: str | None = None


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
    dialogue: Sequence[Turn] = ()  # what was asked of what is shown
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


@dataclass(frozen=True)
class RunView:
    """One training run and its evaluation."""

    name: str  # as the tables call it: "STTS, half removed"
    method: str  # decides the colour: none, scorer, random, ...
    fraction: float  # share of the cells removed in training
    metrics: Sequence[Mapping[str, float]] = ()  # rows of metrics.jsonl; each has "step"
    overall: Accuracy | None = None
    families: Mapping[str, Accuracy] = field(default_factory=dict)  # by question family, at the training fraction
    by_fraction: Mapping[float, Accuracy] = field(default_factory=dict)  # by fraction removed at test time
    step_seconds: Mapping[float, float] = field(default_factory=dict)  # by fraction removed; median of a step
    kept_share: float | None = None  # measured
    # Scores at the end of training: edges [n + 1], counts of kept cells [n], counts of dropped cells [n].
    histogram: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # more columns of the summary table


USUAL = 5.0


@dataclass(frozen=True)
class Panel:
    """One curve chart of a training report: a key of metrics.jsonl, its title, how values are written."""

    key: str
    title: str
    unit: str = "number"  # number, percent or seconds
    smooth: bool = True
    from_zero: bool = True  # whether the y axis starts at 0
    usual: bool = False  # whether what is USUAL times the median or more is left out: a step that was compiled, a pause


# As train.step and train.clock log them.
PANELS = (
    Panel("loss_task", "Task loss"),
    Panel("loss_aux", "Auxiliary loss"),
    Panel("accuracy_tokens", "Share of answer tokens right in training", "percent"),
    Panel("time/step_s", "Seconds a step", "seconds", usual=True),
    Panel("kept/share", "Kept share of cells", "percent"),
    Panel("fill/tokens", "Fill rate of rows", "percent", from_zero=False),
    Panel("rate/tokens_per_s", "Tokens a second"),
    Panel("time/data_wait_share", "Share of time spent waiting for data", "percent"),
)


@dataclass(frozen=True)
class ReportView:
    """Several runs side by side. `clips` of the same video and questions that follow each other are shown together."""

    title: str
    runs: Sequence[RunView]
    summary: str = ""  # one or two sentences under the title
    chance: float | None = None  # accuracy of guessing
    clips: Sequence[ScoreView] = ()
    panels: Sequence[Panel] = PANELS
    facts: Mapping[str, str] = field(default_factory=dict)  # device, versions, commands: the foot of the page

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a training report needs at least one run")
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"runs of a report need different names, got {names}")
        for run in self.runs:
            if any(not math.isfinite(float(row.get("step", math.nan))) for row in run.metrics):
                raise ValueError(f"every metrics row of run {run.name!r} needs a 'step'")
