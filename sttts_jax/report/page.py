"""Self-contained HTML pages: what a checkpoint keeps of a video, and how several training runs compare.

No page loads anything: styles, scripts and pictures are inside of it, so it can be mailed, archived or opened offline.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from sttts_jax.evals.accuracy import Accuracy
from sttts_jax.evals.prose import METHOD_NAMES, number, percent, seconds
from sttts_jax.report.charts import Axes, Line, bars, histogram, line_chart
from sttts_jax.report.film import (
    STRIP_BUDGET,
    player_data,
    score_range,
    shots,
    spread,
    where_uri,
)
from sttts_jax.report.views import USUAL, Panel, ReportView, RunView, ScoreView

# Method -> what happens to the cells after the first frame.
DROPS = {
    "scorer": "those with the lowest scores are dropped",
    "random": "a random choice is dropped",
    "easy": "those most like the frame before are dropped",
    "reference_tracking": "those most like their reference are dropped",
}
CLIP_FRAMES = 8


def score_page(view: ScoreView) -> str:
    """The page of one video. HTML text; about 1 to 6 MB, whatever the number of frames."""
    kept, total = int(view.keep.sum()), view.keep.size
    return (
        _environment()
        .get_template("score.html")
        .render(
            view=view,
            method=METHOD_NAMES.get(view.method, view.method),
            kept=kept,
            drops=DROPS.get(view.method, "some are dropped"),
            total=total,
            shots=shots(view),
            shares=view.shares,
            size=_column(len(view.frames)),
            range=score_range(view),
            histogram=_score_histogram(view),
            where=where_uri(view),
            player=Markup(json.dumps(player_data(view)).replace("<", "\\u003c")),
        )
    )


def training_report(report: ReportView) -> str:
    """The page of several runs: one table, accuracy, curves, speed, and what was kept of a few clips. HTML text."""
    return (
        _environment()
        .get_template("training.html")
        .render(
            report=report,
            runs=[{"view": run, "css": css, "name": run.name} for run, css in _coloured(report.runs)],
            families=_families(report.runs),
            best=_best(report.runs),
            extra=list(dict.fromkeys(key for run in report.runs for key in run.facts)),
            family_chart=_family_chart(report),
            fraction_charts=_fraction_charts(report),
            panels=_panel_charts(report),
            histograms=[(run.name, _counts_chart(*run.histogram)) for run in report.runs if run.histogram],
            clips=_clips(report.clips),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sttts_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["seconds"] = seconds
    return environment


def _column(frames: int) -> int:
    """Width in CSS pixels of a frame in the strip: fewer frames are shown larger."""
    return 232 if frames <= 8 else 164 if frames <= 32 else 116


def _score_histogram(view: ScoreView) -> Markup:
    if view.scores is None:
        return Markup("")
    low, high = score_range(view)
    edges = np.linspace(low, high, 33)
    # The first frame is kept whatever its scores are, so it would blur the cut.
    scores, keep = (view.scores[1:], view.keep[1:]) if len(view.keep) > 1 else (view.scores, view.keep)
    return _counts_chart(edges, np.histogram(scores[keep], edges)[0], np.histogram(scores[~keep], edges)[0])


def _counts_chart(edges: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> Markup:
    parts = [("dropped", "s-dropped", dropped), ("kept", "s-kept", kept)]
    return histogram(edges, parts, Axes("score", x_format="{:.2g}".format), "Scores of kept and dropped cells")


def _coloured(runs: Sequence[RunView], scorer_last: bool = False) -> list[tuple[RunView, str]]:
    """Each run with its colour class: `s-METHOD`, or a spare one, `s-other0` to `s-other3`, if two share a method.

    `scorer_last` is for lines: where two coincide, the one drawn last is seen.
    """
    taken: set[str] = set()
    out = []
    for run in runs:
        css = f"s-{run.method}"
        if run.method not in METHOD_NAMES or css in taken:
            css = f"s-other{sum(name.startswith('s-other') for name in taken) % 4}"
        taken.add(css)
        out.append((run, css))
    return sorted(out, key=lambda pair: pair[0].method == "scorer") if scorer_last else out


def _families(runs: Sequence[RunView]) -> list[str]:
    return list(dict.fromkeys(family for run in runs for family in run.families))


def _best(runs: Sequence[RunView]) -> dict[str, float]:
    """The highest accuracy of each column, which the table prints bold; '' is the overall one."""
    columns: dict[str, list[float]] = {}
    for run in runs:
        for family, accuracy in {**run.families, **({"": run.overall} if run.overall else {})}.items():
            columns.setdefault(family, []).append(accuracy.value)
    return {family: max(values) for family, values in columns.items() if len(values) > 1}


def _chance(report: ReportView) -> tuple[tuple[float, str], ...]:
    return () if report.chance is None else ((report.chance, "chance"),)


def _family_chart(report: ReportView) -> Markup:
    groups = _families(report.runs)
    if not groups:
        return Markup("")
    series = [
        (run.name, css, [_triple(run.families.get(group)) for group in groups]) for run, css in _coloured(report.runs)
    ]
    return bars([group.replace("_", " ") for group in groups], series, _chance(report), "Accuracy by question family")


def _triple(accuracy: Accuracy | None) -> tuple[float, float, float] | None:
    return None if accuracy is None else (accuracy.value, accuracy.low, accuracy.high)


def _fraction_charts(report: ReportView) -> list[tuple[str, Markup]]:
    """Accuracy and speed against the fraction removed."""
    accuracy, speed = [], []
    for run, css in _coloured(report.runs, scorer_last=True):
        points = sorted(run.by_fraction.items())
        if points:
            values = [value for _, value in points]
            accuracy.append(
                Line(
                    run.name,
                    css,
                    [k for k, _ in points],
                    [a.value for a in values],
                    [a.low for a in values],
                    [a.high for a in values],
                )
            )
        timed = sorted(run.step_seconds.items())
        if timed:
            speed.append(Line(run.name, css, [k for k, _ in timed], [value for _, value in timed]))
    charts = []
    if accuracy:
        axes = Axes("cells removed at test time", percent, percent, (0, 1), _chance(report))
        charts.append(("Accuracy by share removed", line_chart(accuracy, axes, "Accuracy by share of cells removed")))
    if speed:
        axes = Axes("cells removed", seconds, percent, from_zero=True)
        charts.append(("Step time by share removed", line_chart(speed, axes, "Step time by share of cells removed")))
    return charts


def _panel_charts(report: ReportView) -> list[tuple[str, Markup]]:
    charts = []
    formats = {"number": number, "percent": percent, "seconds": seconds}
    for panel in report.panels:
        lines = _panel_lines(report.runs, panel)
        if lines:
            axes = Axes("step", formats[panel.unit], smooth=panel.smooth, from_zero=panel.from_zero)
            charts.append((panel.title, line_chart(lines, axes, f"{panel.title} by step")))
    return charts


def _panel_lines(runs: Sequence[RunView], panel: Panel) -> list[Line]:
    """One line a run that logged the panel's key."""
    logged = [(run, css, _panel_rows(run, panel)) for run, css in _coloured(runs, scorer_last=True)]
    return [
        Line(run.name, css, [row["step"] for row in rows], [row[panel.key] for row in rows])
        for run, css, rows in logged
        if rows
    ]


def _panel_rows(run: RunView, panel: Panel) -> list[Mapping[str, float]]:
    rows = [row for row in run.metrics if panel.key in row]
    if not panel.usual or not rows:
        return rows
    limit = USUAL * float(np.median([row[panel.key] for row in rows]))
    return [row for row in rows if row[panel.key] < limit or limit <= 0]


def _clips(views: Sequence[ScoreView]) -> list[dict[str, Any]]:
    """Views of the same video and questions that follow each other, together."""
    clips: list[dict[str, Any]] = []
    budget = STRIP_BUDGET // max(1, len(views)) * 2
    for view in views:
        strip = {
            "view": view,
            "method": METHOD_NAMES.get(view.method, view.method),
            "dialogue": view.dialogue,
            "shots": shots(view, spread(len(view.frames), CLIP_FRAMES), budget),
        }
        asked = [turn.question for turn in view.dialogue]
        if clips and (clips[-1]["video"], clips[-1]["asked"]) == (view.video, asked):
            clips[-1]["strips"].append(strip)
        else:
            clips.append({"video": view.video, "asked": asked, "dialogue": view.dialogue, "strips": [strip]})
    return clips
