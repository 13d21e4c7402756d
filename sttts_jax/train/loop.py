"""The training loop. Its order is law, because what a checkpoint holds must agree with itself:

    check the save that goes on  ->  next batch  ->  step  ->  metrics of the step before  ->  evaluation  ->  save

The data position is that of right after the step that used its last batch, so a resumed run sees every batch once. A
step is evaluated before it is saved, so that the save knows how good it is, and a resumed run evaluates no step twice.
Its metrics are on disk before it is. A run that is told to stop saves at once: that step is not evaluated. A run that
fails saves what it has, but never in the place of a good step.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from sttts_jax.chips import peak_flops
from sttts_jax.ckpt.aborted import save_aborted
from sttts_jax.ckpt.content import tokenizer_digests
from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.manager import GO_ON, CheckpointError
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.data.device import to_device
from sttts_jax.data.record import join_names
from sttts_jax.exit_codes import Stopped
from sttts_jax.paths import write_text
from sttts_jax.pruning.scorer import HISTOGRAM_BINS
from sttts_jax.sharding import state_table
from sttts_jax.train.buckets import Bucket, Buckets
from sttts_jax.train.clock import Clock
from sttts_jax.train.first_batch import check_first_batch, contact_sheet
from sttts_jax.train.metrics import Late, MetricWriter
from sttts_jax.train.overview import parameter_overview
from sttts_jax.train.profile import ProfileWindow
from sttts_jax.train.run import Evaluate, Run, Start
from sttts_jax.train.signals import StopSignals, ToldToStop
from sttts_jax.train.state import TrainState
from sttts_jax.train.watchdog import Watchdog

CONSOLE = (
    "loss",
    "loss_task",
    "loss_aux",
    "accuracy_tokens",
    "kept/share",
    "fill/tokens",
    "time/step_s",
    "time/data_wait_s",
)

SATURATED = 0.9  # of the cells of videos: from this share on a warning


class TooManySkipped(ValueError):
    """Updates in a row had a NaN or an infinity; said in one sentence, as what the user can mend."""


def train(
    run: Run, start: Start, evaluate: Evaluate | None = None, out: Any = None, clock: Clock | None = None
) -> TrainState:
    """Runs to `total_steps`, to a signal (state saved), or to an error; returns the last state.

    `clock` began with the process; None: it begins here. `evaluate` is asked every `evaluation.every` steps and after
    the last one. It cannot change the run: it gets the parameters and gives numbers. Raises KeyboardInterrupt where it
    was Ctrl-C that ended the run, once all is saved.
    """
    with (
        jax.set_mesh(run.mesh),
        StopSignals() as signals,
        contextlib.closing(_Loop(run, start, signals, evaluate, out, clock or Clock())) as loop,
    ):
        try:
            loop.advance_all(run.config.total_steps)
        except ToldToStop:
            loop.stop()
        except TooManySkipped as error:
            raise TooManySkipped(f"{error}; {loop.abort()}") from None
        except Exception as error:
            loop.save_before_the_end(error)
            raise
    if signals.interrupted:
        raise Stopped
    return loop.state


class _Loop:
    """What goes through the steps of a run: its state, and what measures and writes.

    `_done`: the newest update. `_position`: of the data after it, plain JSON.
    """

    def __init__(self, run: Run, start: Start, signals: StopSignals, evaluate: Evaluate | None, out: Any, clock: Clock):
        config = run.config
        self.state = start.state
        self._first = self._done = int(start.state.step)
        self._position = run.buckets.get_state()
        self._run, self._signals, self._evaluate = run, signals, evaluate
        self._clock, clock.peak = clock, _peak(run.mesh)
        clock.restore(start.counters.get("clock", {}))
        self._writer = MetricWriter(
            run.workdir.root,
            total_steps=config.total_steps,
            resume_step=self._done,
            console_keys=CONSOLE,
            tensorboard=config.log.tensorboard,
            patient=config.checkpoint.on_failure == GO_ON,
            out=out,
        )
        self._names: dict[int, Sequence[str]] = {}  # of the records in the batches of updates not yet reported
        self._saturated = False  # nearly all scores were, at the newest step
        self._limits = config.watchdog.of(jax.process_count())
        self._watchdog = Watchdog(self._limits.startup_s, self._limits.step_s).start()
        self._profile, self._late = ProfileWindow(config.profile, run.workdir.profile), Late()
        self._writer.note(start.origin)
        self._writer.note(parameter_overview(run.plan))
        if jax.process_index() == 0:
            write_text(run.workdir.state_table, state_table(run.plan.boxed, run.mesh, run.plan.min_size) + "\n")
        clock.begin()

    def advance_all(self, last: int) -> None:
        """Updates up to `last`, or until the run is told to stop."""
        for number in range(self._done + 1, last + 1):
            if not self.advance(number):
                return

    def advance(self, number: int) -> bool:
        """Update `number`, and what belongs to it; False where the run was told to stop."""
        run, last = self._run, number == self._run.config.total_steps
        run.manager.raise_if_failed()
        self._profile.before(number, self.state.step)
        bucket = run.buckets.at(number)
        batch = self._batch(number, bucket)
        metrics = self._update(bucket, batch)
        self._done, self._position = number, run.buckets.get_state()
        self._report(self._late.push(number, metrics))
        stop = self._signals.asked(number)
        results = None
        if self._evaluate is not None and not stop and (last or number % run.config.evaluation.every == 0):
            results = self._ask(number, self._evaluate)
        if stop and not last:
            self.stop()
        elif last or run.manager.should_save(number):
            self.save(results)
        self._watchdog.beat(f"step {number}")
        return not stop

    def _batch(self, number: int, bucket: Bucket) -> dict[str, jax.Array]:
        with self._clock.measure("data"):
            batch = self._signals.wait(lambda: next(bucket.batches), number - 1)
            self._names[number] = bucket.batches.names
            if bucket.compiled is None:
                check_first_batch(batch, bucket.config.data.row_shape)
                self._writer.image(number, f"first_batch/k_{bucket.fraction}", contact_sheet(batch["frames"]))
            return to_device(batch, self._run.layout.sharding(), self._run.config.data.rows)

    def _update(self, bucket: Bucket, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The first step of a bucket is compiled, which may take as long as the run's first step. Later ones move
        nothing between host and device: what would is an error.
        """
        number = self._done + 1
        if bucket.compiled is not None:
            self._signals.begin(number)
            with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=number):
                self.state, metrics = bucket.compiled(self.state, batch)
            return metrics
        limit_s = self._limits.startup_s
        with self._watchdog.paused(f"the first step that removes {bucket.fraction}", limit_s):
            with self._clock.measure("compile"):
                bucket.compiled = self._signals.wait(lambda: self._compile(bucket, batch), self._done, "compile")
            self._signals.begin(number)
            self.state, metrics = bucket.compiled(self.state, batch)
        return metrics

    def _compile(self, bucket: Bucket, batch: dict[str, jax.Array]) -> Callable[..., Any]:
        with jax.set_mesh(self._run.mesh):  # a thread begins without one
            return bucket.step.lower(self.state, batch).compile()

    def _ask(self, number: int, evaluate: Evaluate) -> dict[str, float]:
        """The metrics of the model after update `number`, which are written behind those of the update.

        Questions that cannot be asked end the run; its state is saved first.
        """
        self.report_held(end=False)
        try:
            with self._clock.measure("eval"), self._watchdog.paused("evaluation"), self._signals.waiting():
                results = evaluate(self._run, number, self.state.params)
        except ValueError:  # in every process; what only one of several meets, it cannot save alone
            self.save(None)
            raise
        self._writer.write(number, results)
        return results

    def save(self, results: dict[str, float] | None) -> bool:
        """The newest state, after its metrics; `results` of its evaluation, if it had one.

        False, and no save, where its update was skipped: such steps must not take the place of good ones. Only the last
        step is saved whatever it was.
        """
        self.report_held(end=self._done == self._run.config.total_steps)
        if int(self.state.skipped) and self._done < self._run.config.total_steps:
            self._writer.note(f"step {self._done} is not saved, because its update was skipped")
            return False
        self._writer.flush()
        with self._clock.measure("save"), self._watchdog.paused("save", self._limits.save_s):
            self._run.manager.save(self._done, **self._parts(), metrics=results)
        return True

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds of the newest state."""
        run, state = self._run, self.state
        counters = {
            "skipped": int(state.skipped),
            "all_skipped": int(state.all_skipped),
            "clock": self._clock.state(),
        }
        layout = run.layout.describe()
        words = tokenizer_digests(run.workdir)
        meta = build_meta(
            step=self._done, config=run.raw_config, data_layout=layout, counters=counters, tokenizer=words
        )
        return {"params": state.params, "opt": state.opt, "data": DataState(run.buckets, self._position), "meta": meta}

    def stop(self) -> None:
        """The run was told to stop: saves the newest state, unless it is as the run found it."""
        if self._done == self._first:
            self._writer.note("told to stop before the first step: there is nothing to save")
        elif self.save(None):
            self._writer.note(f"told to stop: step {self._done} is saved; the same command goes on from there")
        else:
            self._writer.note("told to stop: the same command goes on from the newest step that is saved")

    def abort(self) -> str:
        """Keeps the state of a run that makes no progress beside the steps, and says where. Those stay as they are."""
        run = self._run
        self._writer.flush()
        with self._watchdog.paused("save", self._limits.save_s):
            run.manager.wait()
            place = save_aborted(run.workdir, self._done, **self._parts())
        steps = run.manager.steps
        then = f"goes on from step {steps[-1]}" if steps else "starts anew, because no step was saved before"
        return f"they are kept in {place}, which another run may take as init_from; the same command {then}"

    def save_before_the_end(self, error: Exception) -> None:
        """What was trained since the last save is not lost to an error. Several processes may not all have met it."""
        if jax.process_count() > 1 or isinstance(error, CheckpointError) or self._done == self._first:
            return
        try:
            self.save(None)
        except Exception as problem:  # of memory that the failed step had taken, of a full disk: `error` says more
            logging.warning("step %d could not be saved before the end: %s", self._done, problem)

    def report_held(self, end: bool = True) -> None:
        """Reports the newest step; waits for it."""
        self._report(self._late.flush(), end)

    def _report(self, done: tuple[int, dict[str, Any]] | None, end: bool = False) -> None:
        """Counts every step; writes every `log.every`-th; ends the run after too many skipped updates."""
        if done is None:
            return
        config, (number, metrics) = self._run.config, done
        bucket = self._run.buckets.at(number)
        self._clock.tick(float(metrics.pop("count/tokens")), float(metrics.pop("count/frames")), bucket.flops)
        counts = metrics.pop("scores", None)
        self._note_skipped(number, int(metrics["skipped_in_row"]), self._names.pop(number, ()))
        self._note_saturated(number, float(metrics.get("scores/saturated", 0.0)))
        if number % config.log.every == 0 or end or number in (1, config.total_steps):
            extra = {f"lr/{name}": rate for name, rate in self._run.plan.optimizer.rates(number).items()}
            extra |= self._clock.report() | _data_stats(self._run.buckets)
            self._writer.write(number, {**metrics, **extra, "pruned_fraction": float(bucket.fraction)})
        if counts is not None and number % config.log.histogram_every == 0:
            self._writer.histogram(number, "scores", counts, np.linspace(0, 1, HISTOGRAM_BINS + 1))

    def _note_skipped(self, number: int, in_row: int, names: Sequence[str]) -> None:
        """Every process names the records of its own rows; the first one does so for people."""
        if in_row:
            text = f"step {number}: loss, gradient or parameters not finite, update skipped ({in_row} in a row)"
            tell = self._writer.note if jax.process_index() == 0 else logging.warning
            tell(f"{text}; its rows hold {join_names(names)}")
        if in_row >= self._run.config.loss.max_skipped:
            raise TooManySkipped(
                f"{in_row} updates in a row had a NaN or an infinity, up to step {number}: lower the learning rates, "
                "or look at the data of these steps; the parameters are those of the last good update"
            )

    def _note_saturated(self, number: int, share: float) -> None:
        """Once each time that nearly all scores run to one end."""
        before, self._saturated = self._saturated, share >= SATURATED
        if self._saturated and not before:
            self._writer.note(
                f"step {number}: {share:.0%} of the scores are within 0.001 of 0 or 1, where no gradient reaches the "
                "scorer; if this lasts, start anew with a lower optimizer.scorer_lr or a longer optimizer.warmup"
            )

    def close(self) -> None:
        """Waits for the save that goes on, and closes all writers."""
        self._profile.close(self.state.step)
        try:
            with self._clock.measure("save"), self._watchdog.paused("save", self._limits.save_s):
                self._run.manager.close()
        finally:
            self._watchdog.close()
            self._writer.note(self._clock.summary())
            self._writer.close()


def _peak(mesh: jax.sharding.Mesh) -> float | None:
    """FLOP/s of all devices together, None when unknown."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * mesh.size


def _data_stats(buckets: Buckets) -> dict[str, float]:
    return {f"data/{name}": value for name, value in buckets.stats().items()}
