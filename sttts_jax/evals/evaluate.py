"""Runs answer tasks at settings: everything is checked first, finished measurements are read, the rest is measured."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.place import JSONL
from sttts_jax.distributed import everywhere, gather_json
from sttts_jax.evals.fingerprint import fingerprint
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.prose import percent
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.results import Result, ResultsFile
from sttts_jax.evals.tasks import Task, find_task
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.mesh import make_mesh
from sttts_jax.paths import PathLike, as_path, file_name
from sttts_jax.train.metric_lines import read_lines

Say = Callable[[str], None]


@dataclasses.dataclass
class Evaluation:
    """A run, what it was asked, and what came out.

    file     where results and predictions lie
    metrics  lines of the training's metrics.jsonl; none where the checkpoint came without
    results  by task, then setting
    """

    checkpoint: Checkpoint
    questions: list[Questions]
    settings: list[Setting]
    file: ResultsFile
    metrics: list[dict[str, Any]]
    results: list[list[Result]] = dataclasses.field(default_factory=list)

    def trained(self, task: int = 0) -> Result | None:
        """The result of a task at the setting of the training."""
        wanted = (self.checkpoint.trained.fraction, self.checkpoint.trained.max_frames)
        return next((r for r in self.results[task] if (r.key.fraction, r.key.max_frames) == wanted), None)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """At what every run is asked; fractions and frames may be several. None: as trained."""

    method: str | None = None
    pruned_fraction: str | float | Sequence[str | float] | None = None
    max_frames: int | Sequence[int] | None = None
    max_fps: float | None = None
    max_crops: int | None = None
    sampling: str | None = None

    def settings(self, checkpoint: Checkpoint) -> list[Setting]:
        """All pairs. A method that drops nothing has one fraction only, so some may be the same."""
        shares, counts = _several(self.pruned_fraction, "pruned_fraction"), _several(self.max_frames, "max_frames")
        pairs = [(k, frames) for frames in counts for k in shares]
        rest = self.max_fps, self.max_crops, self.sampling
        return list(dict.fromkeys(checkpoint.setting(fraction, frames, *rest) for fraction, frames in pairs))


def plan(
    workdirs: PathLike | Sequence[PathLike],
    tasks: str | Sequence[str],
    sweep: Sweep = Sweep(),
    limit: int | None = None,
    data_dir: str | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    mesh: Mapping[str, int] | None = None,
) -> list[Evaluation]:
    """One Evaluation a run, in order, still without results: configs are read, sources and earlier results opened.

    The arguments and errors are those of `sttts_jax.api.evaluate`.
    """
    chosen = [find_task(name) for name in _several(tasks, "tasks")]
    if data_dir is not None and all(task.source.startswith(JSONL) for task in chosen):
        raise ValueError(f"data_dir={data_dir} is where built datasets lie, and every task is a file; leave it out")
    checkpoints = _read_all(_several(workdirs, "workdirs"), sweep.method)
    if mesh is not None:
        place = functools.cache(lambda: make_mesh(mesh))
        checkpoints = [dataclasses.replace(checkpoint, place=place) for checkpoint in checkpoints]
    evaluations = []
    for checkpoint in checkpoints:
        folder = Workdir(checkpoint.directory).evaluations if out is None else as_path(out)
        if out is not None and len(checkpoints) > 1:
            folder = folder / file_name(checkpoint.name)
        file = ResultsFile(folder, checkpoint.name, checkpoint.config, overwrite)
        asked = [_questions(task, checkpoint, data_dir, limit) for task in chosen]
        settings = sweep.settings(checkpoint)
        evaluations.append(Evaluation(checkpoint, asked, settings, file, _metrics(checkpoint.directory)))
    return evaluations


def measure(
    evaluations: Sequence[Evaluation],
    batch: int,
    seed: int = 0,
    frame_buckets: Sequence[int] = (),
    say: Say | None = None,
) -> None:
    """Fills in the results, from the file where they are there. Every process calls the same.

    Raises ValueError, before anything is measured, where a result could not be written.
    """
    harnesses = [Harness(evaluation.checkpoint, batch, seed, frame_buckets) for evaluation in evaluations]
    for evaluation, harness in zip(evaluations, harnesses, strict=True):
        found = [evaluation.file.find(known) for known in _fingerprints(evaluation, harness)]
        if any(result is None for result in found):
            evaluation.file.check_writable()
    for evaluation, harness in zip(evaluations, harnesses, strict=True):
        for questions in evaluation.questions:
            results = [_measured(harness, evaluation.file, questions, setting, say) for setting in evaluation.settings]
            evaluation.results.append(results)
        evaluation.checkpoint.release()


def _fingerprints(evaluation: Evaluation, harness: Harness) -> Iterator[str]:
    for questions, setting in itertools.product(evaluation.questions, evaluation.settings):
        yield _fingerprint(harness, questions, setting)


def _fingerprint(harness: Harness, questions: Questions, setting: Setting) -> str:
    """On every process, of the files that the first one reads."""
    return gather_json(fingerprint(harness, questions, setting) if jax.process_index() == 0 else "")[0]


def _several(given: Any, name: str) -> list[Any]:
    """The items of a list, each once; one by itself is a list of one. Raises ValueError for none."""
    alone = isinstance(given, str | float | int | os.PathLike) or not isinstance(given, Iterable)
    found = [given] if alone else list(dict.fromkeys(given))
    if not found:
        raise ValueError(f"{name} is empty; give at least one")
    return found


def _read_all(directories: Sequence[PathLike], method: str | None) -> list[Checkpoint]:
    """Checkpoints of different names: those of their directories where two runs are called alike."""
    checkpoints = [read_checkpoint(directory, method) for directory in directories]
    if len({checkpoint.name for checkpoint in checkpoints}) == len(checkpoints):
        return checkpoints
    named = zip(checkpoints, directories, strict=True)
    return [dataclasses.replace(checkpoint, name=str(directory)) for checkpoint, directory in named]


def _questions(task: Task, checkpoint: Checkpoint, data_dir: str | None, limit: int | None) -> Questions:
    source = task_source(task, checkpoint.data, data_dir)
    return Questions(task, source, checkpoint.tokenizer, checkpoint.data, limit)


def _metrics(directory: str) -> list[dict[str, Any]]:
    return read_lines(Workdir(directory).metrics)


def _measured(harness: Harness, file: ResultsFile, questions: Questions, setting: Setting, say: Say | None) -> Result:
    """The result of one task at one setting, from the file where it is there, else measured and put there."""
    known = _fingerprint(harness, questions, setting)
    result, predictions = file.find(known), None
    if not everywhere(result is not None) or result is None:
        result, predictions = harness.run(questions, setting)
    if say is not None and jax.process_index() == 0:
        seconds = result.seconds_per_question * result.overall.count + result.compile_seconds
        origin = "read from results.json" if predictions is None else f"{seconds:.1f} s"
        run, tally = f"{harness.checkpoint.name} step {harness.checkpoint.step}", result.overall
        asked = f"{questions.task.name}, {percent(float(setting.fraction))} removed, {setting.max_frames} frames"
        say(f"{run}: {asked}: {tally.right} of {tally.count} right, {origin}")
    if predictions is not None and jax.process_index() == 0:
        result = file.put(known, result, predictions)
    return result
