"""What the page of several runs shows, as plain data: `runs` fills it in, `page` draws it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sttts_jax.evals.accuracy import Accuracy
from sttts_jax.infer.kept import ScoreView


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


@dataclass(frozen=True)
class Panel:
    """One curve chart of a training report: a key of metrics.jsonl, its title, how values are written."""

    key: str
    title: str
    unit: str = "number"  # number, percent or seconds
    smooth: bool = True
    from_zero: bool = True  # whether the y axis starts at 0


# As train.step and train.clock log them.
PANELS = (
    Panel("loss_task", "Task loss"),
    Panel("loss_aux", "Auxiliary loss"),
    Panel("accuracy_tokens", "Share of answer tokens right in training", "percent"),
    Panel("time/step_s", "Seconds a step", "seconds"),
    Panel("kept/share", "Kept share of cells", "percent"),
    Panel("fill/tokens", "Fill rate of rows", "percent", from_zero=False),
    Panel("rate/tokens_per_s", "Tokens a second"),
    Panel("time/data_wait_share", "Share of time spent waiting for data", "percent"),
)


@dataclass(frozen=True)
class ReportView:
    """Several runs side by side. `clips` of the same video and question that follow each other are shown together."""

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
