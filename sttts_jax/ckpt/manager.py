"""Saves a run while it goes on, and finds the newest state that can be trusted when it starts again.

Saves are asynchronous Orbax v1 checkpoints of four parts: `params`, `opt`, `data` (the Grain iterator), `meta`
(JSON). A save goes to a temporary name and is renamed when whole, so a process that dies at any moment leaves no half
step behind.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sttts_jax.ckpt import files
from sttts_jax.ckpt.meta import check_config
from sttts_jax.ckpt.restore import DATA, META, OPT, PARAMS, TreeMismatch, load_step, read_step_meta, saving_context
from sttts_jax.ckpt.verify import first_line, problem_everywhere
from sttts_jax.ckpt.whole import none_is_whole, say_used
from sttts_jax.distributed import everywhere
from sttts_jax.exit_codes import PREEMPTED
from sttts_jax.paths import PathLike, as_path

_ALL = (PARAMS, OPT, DATA)
STOP, GO_ON = "stop", "go_on"
_keep = ocp.training.preservation_policies


class CheckpointError(ValueError):
    """A save failed, or no saved step can be read."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Which steps are saved and kept.

    every           steps between saves; the last step is saved too
    keep            newest steps to keep
    best_metric     also keep the step where it is highest, of equal ones the last: "eval/TASK/accuracy" of a task of
                    the evaluation section
    preempted_exit_code  of `train` when it was told to end, and saved, before its last step: one on which the launcher
                    starts it again
    on_failure      what follows a save that fails, on a full disk for example: "stop" ends the run; "go_on", of a run
                    of one process, trains on and tries again at the next save. The newest save must succeed in the end
    """

    every: int = 500
    keep: int = 3
    best_metric: str = ""
    preempted_exit_code: int = PREEMPTED
    on_failure: str = STOP

    def check(self) -> Self:
        """Itself. Raises ValueError on numbers out of range."""
        if self.every < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every={self.every} and checkpoint.keep={self.keep} must be at least 1")
        if not 0 <= self.preempted_exit_code <= 255:
            raise ValueError(f"checkpoint.preempted_exit_code={self.preempted_exit_code} must be from 0 to 255")
        if self.on_failure not in (STOP, GO_ON):
            raise ValueError(f"checkpoint.on_failure={self.on_failure!r} is unknown; use {STOP!r} or {GO_ON!r}")
        return self


@dataclass(frozen=True)
class Restored:
    """What `Manager.restore_latest` found; the data iterator was set in place."""

    step: int
    params: Any
    opt: Any
    meta: dict[str, Any]


class Manager:
    """All processes make the same calls in the same order, from the main thread.

    manager = Manager(workdir.checkpoints, config)
    found = manager.restore_latest(abstract_params, abstract_opt, iterator, config=config)
    for step in ...:
        manager.raise_if_failed()                         # a failed save ends the run here, not hours later
        if manager.should_save(step):
            manager.save(step, params, opt, iterator, meta)
    manager.close()
    """

    def __init__(self, directory: PathLike, config: CheckpointConfig):
        config.check()
        if config.on_failure == GO_ON and jax.process_count() > 1:
            raise ValueError(
                f"checkpoint.on_failure={GO_ON!r} is for runs of one process, because several cannot tell each other "
                f"what failed; use {STOP!r}"
            )
        self.directory = as_path(directory)
        self._config = config
        self._writer: ocp.training.Checkpointer | None = None
        self._pending: tuple[int, Any] | None = None
        self._failed = False
        self._owed: CheckpointError | None = None  # the newest save failed, and none after it succeeded

    @property
    def steps(self) -> list[int]:
        """Saved steps, ascending."""
        return files.list_steps(self.directory)

    def should_save(self, step: int) -> bool:
        """Whether the interval says so."""
        return step % self._config.every == 0

    def save(
        self,
        step: int,
        params: Any,
        opt: Any,
        data: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save a step; the arrays may be donated as soon as this returns. False when the step exists already.

        data: a Grain iterator, or None. metrics: what an evaluation of this step found, None without one; a step
        without them is never the best.
        Raises CheckpointError when this or the save before it failed and that is to stop the run, ValueError when
        `best_metric` is none of `metrics`.
        """
        ranked = self._ranked(metrics)
        self.wait()
        if step in self.steps:
            return False
        parts = {PARAMS: params, OPT: opt, META: dict(meta)} | ({} if data is None else {DATA: data})
        try:
            # By force: the loop decides when to save, not a policy of Orbax.
            response = self._orbax().save_checkpointables_async(step, parts, force=True, metrics=ranked)
        except Exception as error:
            self._fail(step, error)
            return False
        self._pending = (step, response)
        return True

    def _ranked(self, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
        """The number that decides which step is the best, as Orbax keeps it beside the arrays."""
        name = self._config.best_metric
        if not name or metrics is None:
            return None
        if name not in metrics:
            raise ValueError(
                f"checkpoint.best_metric={name!r} is not a metric of the evaluation; choose one of: "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        return {name: float(metrics[name])}

    def _fail(self, step: int, error: Exception) -> None:
        """Raises what the failure is called, or says it and makes ready for the next save."""
        self._failed = True
        failure = CheckpointError(
            f"saving step {step} to {self.directory} failed ({type(error).__name__}: {first_line(error)}); "
            f"check space and permissions there; whole steps are {self.steps}"
        )
        if self._config.on_failure == STOP:
            raise failure from error
        self._close_writer()
        self._failed, self._owed = False, failure
        logging.warning("%s; training goes on", failure)

    def raise_if_failed(self) -> None:
        """Raises CheckpointError when the save has ended and failed; never waits for one that goes on."""
        if self._pending is not None and not self._orbax().is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the save that goes on, if any. Raises CheckpointError when it failed and that stops the run."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
            if jax.process_index() == 0:
                files.record_files(self.directory, step)
            self._owed = None
        except Exception as error:
            self._fail(step, error)

    def close(self) -> None:
        """Waits for the save that goes on, ends the background threads. Raises CheckpointError when the newest save
        failed.

        Nothing is left of a save that failed.
        """
        try:
            self.wait()
        finally:
            self._close_writer()
        if self._owed is not None:
            raise self._owed

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except Exception:
            if not self._failed:  # Orbax raises a failure again that was raised already
                raise
        if self._failed and jax.process_index() == 0:
            _remove_failed(self.directory)

    def _orbax(self) -> ocp.training.Checkpointer:
        """Made late: broken steps are out of the way by then, and evaluation never needs it."""
        if self._writer is None:
            if jax.process_index() == 0:
                _remove_unfinished(self.directory)
            keep: list[Any] = [_keep.LatestN(self._config.keep)]
            if self._config.best_metric:
                keep.append(_best(self._config.best_metric))
            self._writer = ocp.training.Checkpointer(
                self.directory,
                context=saving_context(),
                preservation_policy=_keep.AnyPreservationPolicy(keep),
            )
        return self._writer

    def restore_latest(self, params: Any, opt: Any, data: Any, *, config: Mapping[str, Any]) -> Restored | None:
        """The newest step that can be read, None when nothing was ever saved.

        params, opt: abstract trees with the shardings of this run's mesh (`sharding.abstract_state`). data: the
        iterator. A step with missing, changed or unreadable files is named in a warning and moved to DIR/broken; the
        one before is tried.

        Raises ConfigMismatch (another config), FormatMismatch, TreeMismatch (another model), ValueError (a position in
        other data): none of them is a reason to go back a step. CheckpointError when steps exist but none can be read.
        """
        broken = dict[int, str]()
        for step in reversed(self.steps):
            found, problem = self._try(step, params, opt, data, config)
            everyone = everywhere(found is not None)
            if found is not None and everyone:
                say_used(files.step_directory(self.directory, step), broken)
                self._set_aside(broken)
                return found
            broken[step] = problem or "another process could not read it"
        if broken:
            raise CheckpointError(none_is_whole(self.directory, broken))
        return None

    def _try(
        self, step: int, params: Any, opt: Any, data: Any, config: Mapping[str, Any]
    ) -> tuple[Restored | None, str]:
        """(what was read, '') or (None, why not)."""
        path = files.step_directory(self.directory, step)
        # In a load of several processes the one that meets damage would leave the others waiting: they look first.
        alone = jax.process_count() == 1
        problem = problem_everywhere(path, () if alone else _ALL)
        if problem:
            return None, problem
        meta = read_step_meta(path)
        check_config(meta, config)
        try:
            loaded = load_step(path, params, opt, data)
        except TreeMismatch:
            raise
        except Exception:  # of damaged bytes, or of anything else, such as memory: the bytes tell
            problem = problem_everywhere(path, _ALL) if alone else ""
            if not problem:
                raise
            return None, problem
        return Restored(step, *loaded, meta), ""

    def _set_aside(self, broken: Mapping[int, str]) -> None:
        if jax.process_index() == 0:
            for step in broken:
                logging.warning("moved the broken step %d to %s", step, files.set_aside(self.directory, step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("broken checkpoints set aside")


def _best(name: str) -> Any:
    """Keeps the step where the metric is highest; those saved when another one was ranked count for nothing."""
    lowest = float("-inf")
    return _keep.BestN(
        get_metric_fn=lambda metrics: metrics.get(name, lowest), n=1, keep_checkpoints_without_metrics=False
    )


def _remove_failed(directory: Any) -> None:
    """Deletes what a save of this process left; parts of it that did not fail may still be being written."""
    for _ in range(20):
        if not files.unfinished(directory):
            return
        with contextlib.suppress(OSError):
            _remove_unfinished(directory)
        time.sleep(0.1)


def _remove_unfinished(directory: Any) -> None:
    """Deletes what a killed process left."""
    for path in files.unfinished(directory):
        logging.warning("removing the unfinished save %s", path)
        path.rmtree()
