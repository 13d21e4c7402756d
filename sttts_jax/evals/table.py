"""Results of several runs as one table of plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

from sttts_jax.evals.prose import METHOD_NAMES, percent, seconds
from sttts_jax.evals.results import Result, Tally
from sttts_jax.trees import table


@dataclass(frozen=True)
class Row:
    """A result of a run; `step_seconds` is the median of its training, None where that is not known."""

    run: str
    method: str
    result: Result
    step_seconds: float | None


def results_table(rows: Sequence[Row]) -> str:
    """One line a result of the same task: accuracies in percent with half their 95 % interval, and step times."""
    families = list(dict.fromkeys(family for row in rows for family in row.result.families))
    base = next((row.step_seconds for row in rows if row.method == "none" and row.step_seconds), None)
    header = ["method", "run", "removed", "frames", "all", *families, "kept", "training step", "a question"]
    lines = []
    for row in rows:
        result = row.result
        tallies = [result.overall, *(result.families.get(family) for family in families)]
        lines.append(
            [
                METHOD_NAMES.get(row.method, row.method),
                row.run,
                percent(float(result.key.fraction)),
                str(result.key.max_frames),
                *map(_accuracy, tallies),
                percent(result.kept_share),
                step_text(row.step_seconds, base),
                seconds(result.seconds_per_question),
            ]
        )
    return table(header, lines)


def _accuracy(tally: Tally | None) -> str:
    if tally is None:
        return "-"
    value = tally.accuracy
    return f"{100 * value.value:.1f} ± {50 * (value.high - value.low):.1f}"


def step_text(value: float | None, base: float | None) -> str:
    """'310 ms (0.72 x)': a step, and in parts of the unpruned one."""
    if value is None:
        return "-"
    return seconds(value) + (f" ({value / base:.2f} x)" if base else "")


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the numbers of the table leave out, one line each."""
    lines = []
    for row in rows:
        result = row.result
        where = f"{row.run}, {percent(float(result.key.fraction))} removed, {result.key.max_frames} frames"
        if result.overall.unparsable:
            unread, count = result.overall.unparsable, result.overall.count
            lines.append(f"{where}: {unread} of {count} answers name no option or say nothing; they count as wrong")
        if result.bad:
            lines.append(f"{where}: {len(result.bad)} questions could not be asked and are not in the accuracy")
            lines += [f"  {bad['id']}: {bad['error']}" for bad in result.bad[:5]]
        if result.frames_mean < result.key.max_frames:
            lines.append(
                f"{where}: a question had {result.frames_mean:.1f} frames on average, as its clip and max_fps allow"
            )
    return lines
