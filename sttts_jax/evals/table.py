"""Results of several runs as plain text: one table a task, and what its numbers leave out."""

from collections.abc import Sequence

from sttts_jax.evals.evaluate import Evaluation
from sttts_jax.evals.prose import METHOD_NAMES, percent
from sttts_jax.evals.results import Result, Tally
from sttts_jax.text_table import text_table

CONFIDENCE = "intervals are 95 % (Wilson)"


def summary(evaluations: Sequence[Evaluation]) -> str:
    """A table for each task, with remarks, and where the results lie."""
    parts = []
    for task, questions in enumerate(evaluations[0].questions):
        parts.append(f"\n{questions.task.name}, {len(questions.asked):,} questions, {CONFIDENCE}\n")
        parts += [results_table(evaluations, task), *remarks(evaluations, task)]
    return "\n".join([*parts, "\nresults: " + ", ".join(str(run.file.directory) for run in evaluations)])


def results_table(evaluations: Sequence[Evaluation], task: int) -> str:
    """One line a result: accuracies in percent with half their 95 % interval.

    No times: those of different runs were measured at different hours, and would be divided by each other.
    """
    rows = [(run, result) for run in evaluations for result in run.results[task]]
    families = list(dict.fromkeys(family for _, result in rows for family in result.families))
    header = ["method", "run", "removed", "frames", "all", *families, "kept"]
    lines = []
    for run, result in rows:
        method = run.checkpoint.pruning.method
        tallies = [result.overall, *(result.families.get(family) for family in families)]
        lines.append(
            [
                METHOD_NAMES.get(method, method),
                run.checkpoint.name,
                percent(float(result.key.fraction)),
                str(result.key.max_frames),
                *map(_accuracy, tallies),
                percent(result.kept_share),
            ]
        )
    return text_table(header, lines)


def _accuracy(tally: Tally | None) -> str:
    if tally is None:
        return "-"
    share = tally.accuracy
    return f"{100 * share.value:.1f} ± {50 * (share.high - share.low):.1f}"


def remarks(evaluations: Sequence[Evaluation], task: int) -> list[str]:
    """What the numbers of the table leave out, one line each."""
    return [line for run in evaluations for result in run.results[task] for line in _remarks(run, result)]


def _remarks(run: Evaluation, result: Result) -> list[str]:
    lines, key = [], result.key
    where = f"{run.checkpoint.name}, {percent(float(key.fraction))} removed, {key.max_frames} frames"
    if result.overall.unparsable:
        unread, count = result.overall.unparsable, result.overall.count
        lines.append(f"{where}: {unread} of {count} answers name no option or say nothing; they count as wrong")
    if result.bad:
        lines.append(f"{where}: {len(result.bad)} questions could not be asked and are not in the accuracy")
        lines += [f"  {bad['id']}: {bad['error']}" for bad in result.bad[:5]]
    if result.frames_mean < key.max_frames:
        lines.append(
            f"{where}: a question had {result.frames_mean:.1f} frames on average, as its clip and max_fps allow"
        )
    return lines
