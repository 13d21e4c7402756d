"""Results of several runs as the data of one page: tables, curves, speed, and what was kept of a few clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import sttts_jax
from sttts_jax.evals.prose import METHOD_NAMES, percent
from sttts_jax.evals.questions import Questions
from sttts_jax.evals.results import Result
from sttts_jax.evals.table import step_text
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.report.look import view_video
from sttts_jax.report.views import ReportView, RunView, ScoreView

CLIPS = 4
LONGEST = 80  # characters of an answer
SHOWN = ("scorer", "random")  # methods whose kept tokens are shown


@dataclass(frozen=True)
class Evaluated:
    """One run: its results of the task that the report is about, and what its training logged."""

    checkpoint: Checkpoint
    results: Sequence[Result]
    metrics: Sequence[Mapping[str, float]]  # lines of metrics.jsonl
    step_seconds: float | None  # median of a training step
    speed: Mapping[str, float]  # seconds of a prefill by fraction
    answers: Sequence[Mapping[str, Any]]  # of the trained setting, in the order of the questions; may be empty

    @property
    def main(self) -> Result | None:
        """The result at the trained setting."""
        wanted = (self.checkpoint.trained.fraction, self.checkpoint.trained.max_frames)
        return next((r for r in self.results if (r.key.fraction, r.key.max_frames) == wanted), None)


def report_view(runs: Sequence[Evaluated], questions: Questions, rows: int, command: str) -> ReportView:
    """`rows`: of a batch in the measured prefill; `command`: how to make this page again."""
    base = next((run.step_seconds for run in runs if run.checkpoint.pruning.method == "none"), None)
    task, asked = questions.task, len(questions.asked)
    facts = {
        "Task": f"{task.name}, {asked:,} questions of the split {questions.source.split or 'in the file'}",
        "Step": f"one forward pass over the prompts of {rows} questions, measured in one process, runs in turn, median",
        "Training step": "median over the training, as logged",
        "Device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "Versions": f"sttts_jax {sttts_jax.__version__}, jax {jax.__version__}",
        "Made by": command,
    }
    return ReportView(
        title=f"{task.name}: what pruning keeps, costs and saves",
        runs=[_run_view(run, name, base) for run, name in zip(runs, _names(runs), strict=True)],
        summary=_summary(runs, asked),
        chance=task.chance,
        clips=clips(runs, questions),
        facts=facts,
    )


def _names(runs: Sequence[Evaluated]) -> list[str]:
    """'STTS, 50 % removed'; with the run's own name where two would be called alike."""
    labels = []
    for run in runs:
        method, fraction = run.checkpoint.pruning.method, float(run.checkpoint.trained.fraction)
        labels.append(METHOD_NAMES.get(method, method) + (f", {percent(fraction)} removed" if fraction else ""))
    return [
        f"{label} ({run.checkpoint.name})" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _summary(runs: Sequence[Evaluated], asked: int) -> str:
    steps = sorted({run.checkpoint.step for run in runs})
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    after = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return f"{count[0].upper()}{count[1:]} after {after} steps, asked the same {asked:,} questions."


def _run_view(run: Evaluated, name: str, base: float | None) -> RunView:
    checkpoint, main, trained = run.checkpoint, run.main, run.checkpoint.trained
    by_fraction = {
        float(r.key.fraction): r.overall.accuracy for r in run.results if r.key.max_frames == trained.max_frames
    }
    facts = {"Training step": step_text(run.step_seconds, base)}
    for r in run.results:
        if r.key.max_frames != trained.max_frames and r.key.fraction == trained.fraction:
            facts[f"at {r.key.max_frames} frames"] = percent(r.overall.accuracy.value)
    histogram = None
    if main is not None and main.histogram is not None:
        edges, kept, dropped = (np.asarray(main.histogram[part]) for part in ("edges", "kept", "dropped"))
        histogram = (edges, kept, dropped)
    return RunView(
        name=name,
        method=checkpoint.pruning.method,
        fraction=float(trained.fraction),
        metrics=[line for line in run.metrics if "histogram" not in line],
        overall=None if main is None else main.overall.accuracy,
        families={} if main is None else {family: t.accuracy for family, t in main.families.items()},
        by_fraction=by_fraction,
        step_seconds={float(fraction): value for fraction, value in run.speed.items()},
        kept_share=None if main is None else main.kept_share,
        histogram=histogram,
        facts=facts,
    )


def clips(runs: Sequence[Evaluated], questions: Questions, most: int = CLIPS) -> list[ScoreView]:
    """Up to `most` videos with a question of different families, each as the runs of SHOWN keep it."""
    shown = [run for run in runs if run.checkpoint.pruning.method in SHOWN and run.answers]
    views = []
    for number in _telling(shown[0].answers, questions, most) if shown else []:
        record = questions.records[questions.asked[number][0]]
        for run in shown:
            said = run.answers[number]
            if "error" in said or record.video is None:
                continue
            views.append(
                view_video(
                    run.checkpoint,
                    record.video,
                    run.checkpoint.trained,
                    name=record.id,
                    start=record.start,
                    end=record.end,
                    question=said["question"],
                    # Where the rule calls another spelling right, the right one is shown.
                    answer=said["target"] if said["right"] else said["prediction"][:LONGEST] or "nothing",
                    truth=said["target"],
                    kept=said["mask"],
                )
            )
    return views


def _telling(answers: Sequence[Mapping[str, Any]], questions: Questions, most: int) -> list[int]:
    """Numbers of questions of different families, each of another record, first come first."""
    families: set[str] = set()
    records: set[int] = set()
    picked = []
    for answer in answers:
        record = questions.asked[answer["number"]][0]
        family = answer.get("family", "")
        if "error" in answer or record in records or (family and family in families):
            continue
        families.add(family)
        records.add(record)
        picked.append(answer["number"])
    return picked[:most]
