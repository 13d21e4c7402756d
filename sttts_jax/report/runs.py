"""Results of several runs as one page: tables, curves, speed, and what was kept of a few clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import sttts_jax
from sttts_jax.data.record import Record
from sttts_jax.evals.evaluate import Evaluation
from sttts_jax.evals.prose import METHOD_NAMES, percent
from sttts_jax.evals.questions import Questions
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.paths import PathLike, as_path, check_writable, write_bytes, write_text
from sttts_jax.report.film import kept_tokens_png
from sttts_jax.report.look import view_video
from sttts_jax.report.page import training_report
from sttts_jax.report.speed import prefill_seconds
from sttts_jax.report.views import ReportView, RunView, ScoreView, Turn

CLIPS = 4
LONGEST = 80  # characters of an answer
PICTURED = "scorer"  # the method of the picture
SHOWN = (PICTURED, "random")  # methods whose kept tokens are shown on the page


@dataclass(frozen=True)
class Report:
    """What to write about an evaluation.

    page     an .html page that compares the runs on the first task and measures prefills
    picture  a .png of kept tokens of a run of method scorer
    made_by  how to make it again, in the foot of the page

    Raises ValueError for files of another ending, and where they cannot be written.
    """

    page: PathLike | None = None
    picture: PathLike | None = None
    made_by: str = "sttts_jax.api.evaluate"

    def __post_init__(self) -> None:
        for name, file, ending in (("report", self.page, ".html"), ("picture", self.picture, ".png")):
            if file is not None and as_path(file).suffix != ending:
                raise ValueError(f"{name} {file} must end in {ending}")
            if file is not None:
                check_writable(file)


def check_report(runs: Sequence[Evaluation], report: Report) -> None:
    """Raises ValueError where no run is to be evaluated that the picture can show."""
    asked = [run for run in runs if run.checkpoint.pruning.method == PICTURED]
    if report.picture and not any(run.checkpoint.trained in run.settings for run in asked):
        raise ValueError(
            "the picture shows a run of method scorer at its trained share and number of frames, and none is evaluated "
            "so; add it, or leave --picture out"
        )


def write_report(runs: Sequence[Evaluation], rows: int, report: Report) -> None:
    """The first task as a page that compares the runs, and as a picture of what one of them keeps.

    `rows` of a batch in the measured prefill, which takes a while. Raises ValueError where no run that was evaluated
    can be shown in the picture.
    """
    speed = prefill_by_fraction(runs, rows) if report.page else [{} for _ in runs]
    view = report_view(runs, speed, rows, report.made_by)
    if report.page:
        write_text(report.page, training_report(view))
    if report.picture:
        shown = next((clip for clip in view.clips if clip.method == PICTURED), None)
        if shown is None:
            raise ValueError("the picture shows a video, and no question of the first task is about one")
        write_bytes(report.picture, kept_tokens_png(shown))


def prefill_by_fraction(runs: Sequence[Evaluation], rows: int) -> list[dict[str, float]]:
    """For each run: seconds of a prefill by fraction removed, at the frames of its training. All take turns."""
    timed = [
        (number, setting)
        for number, run in enumerate(runs)
        for setting in run.settings
        if setting.max_frames == run.checkpoint.trained.max_frames
    ]
    shapes = [(runs[number].checkpoint, runs[number].questions[0].row_shape(setting)) for number, setting in timed]
    speed: list[dict[str, float]] = [{} for _ in runs]
    for (number, setting), value in zip(timed, prefill_seconds(shapes, rows), strict=True):
        speed[number][setting.fraction] = value
    return speed


def report_view(
    runs: Sequence[Evaluation], speed: Sequence[Mapping[str, float]], rows: int, made_by: str
) -> ReportView:
    """The first task of some runs; `speed` as `prefill_by_fraction` measures it."""
    questions = runs[0].questions[0]
    task, asked = questions.task, len(questions.asked)
    facts = {
        "Task": f"{task.name}, {asked:,} questions of the split {questions.source.split or 'in the file'}",
        "Step": f"one forward pass over the prompts of {rows} questions, measured in one process, runs in turn, median",
        "Curves of time": "as logged by each run for itself, whatever else its machine did: not a comparison",
        "Device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "Versions": f"sttts_jax {sttts_jax.__version__}, jax {jax.__version__}",
        "Made by": made_by,
    }
    views = [_run_view(run, name, times) for run, name, times in zip(runs, _names(runs), speed, strict=True)]
    return ReportView(
        title=f"{task.name}: what pruning keeps, costs and saves",
        runs=views,
        summary=_summary(runs, asked),
        chance=task.chance,
        clips=clips(runs, questions),
        facts=facts,
    )


def _names(runs: Sequence[Evaluation]) -> list[str]:
    """'STTS, 50 % removed'; with the run's own name where two would be called alike."""
    labels = []
    for run in runs:
        method, fraction = run.checkpoint.pruning.method, float(run.checkpoint.trained.fraction)
        labels.append(METHOD_NAMES.get(method, method) + (f", {percent(fraction)} removed" if fraction else ""))
    return [
        f"{label} ({run.checkpoint.name})" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _summary(runs: Sequence[Evaluation], asked: int) -> str:
    steps = sorted({run.checkpoint.step for run in runs})
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    after = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return f"{count[0].upper()}{count[1:]} after {after} steps, asked the same {asked:,} questions."


def _run_view(run: Evaluation, name: str, speed: Mapping[str, float]) -> RunView:
    checkpoint, results, main, trained = run.checkpoint, run.results[0], run.trained(), run.checkpoint.trained
    by_fraction = {float(r.key.fraction): r.overall.accuracy for r in results if r.key.max_frames == trained.max_frames}
    facts = {}
    for r in results:
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
        step_seconds={float(fraction): value for fraction, value in speed.items()},
        kept_share=None if main is None else main.kept_share,
        histogram=histogram,
        facts=facts,
    )


def clips(runs: Sequence[Evaluation], questions: Questions) -> list[ScoreView]:
    """Up to CLIPS videos with a question of different families, each as the runs of SHOWN keep it."""
    found = [(run, run.trained()) for run in runs if run.checkpoint.pruning.method in SHOWN]
    shown = [
        (run.checkpoint, result.key.setting, run.file.predictions(result))
        for run, result in found
        if result is not None
    ]
    views = []
    for number in _telling(shown[0][2], questions, CLIPS) if shown else []:
        record = questions.records[questions.asked[number].record]
        if record.video is not None:
            answered = [(one, setting, said[number]) for one, setting, said in shown if "error" not in said[number]]
            views += [_clip(one, setting, record, said) for one, setting, said in answered]
    return views


def _clip(checkpoint: Checkpoint, setting: Setting, record: Record, said: Mapping[str, Any]) -> ScoreView:
    """The video of a question as a checkpoint kept it at the setting that it was asked at; `said`: its line of
    predictions.
    """
    assert record.video is not None
    # Where the judge calls another spelling right, the right one is shown.
    answer = said["target"] if said["right"] else said["prediction"][:LONGEST] or "nothing"
    return view_video(
        checkpoint,
        record.video,
        setting,
        name=record.id,
        start=record.start,
        end=record.end,
        kept=said["mask"],
        dialogue=[Turn(said["question"], answer, said["target"])],
    )


def _telling(answers: Sequence[Mapping[str, Any]], questions: Questions, most: int) -> list[int]:
    """Numbers of questions of different families, each of another record, first come first."""
    families: set[str] = set()
    records: set[int] = set()
    picked = []
    for answer in answers:
        record = questions.asked[answer["number"]].record
        family = answer.get("family", "")
        if "error" in answer or record in records or (family and family in families):
            continue
        families.add(family)
        records.add(record)
        picked.append(answer["number"])
    return picked[:most]
