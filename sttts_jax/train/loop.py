"""The training loop. Its order is law, because what a checkpoint holds must agree with itself:

    check the save that goes on  ->  next batch  ->  step  ->  save  ->  metrics of the step before

The data position is saved right after the step that used its last batch, so a resumed run sees every batch once.
"""

import contextlib
from typing import Any

import jax
import numpy as np
from absl import logging

from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.data.device import to_device
from sttts_jax.train.buckets import Bucket, Buckets
from sttts_jax.train.clock import Clock, peak_flops
from sttts_jax.train.metrics import Late, Metrics
from sttts_jax.train.optimizer import learning_rates
from sttts_jax.train.profile import ProfileWindow
from sttts_jax.train.run import Evaluate, Run, Start
from sttts_jax.train.state import TrainState
from sttts_jax.train.step import HISTOGRAM_BINS
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


class TooManySkipped(ValueError):
    """Updates in a row had a NaN or an infinity; said in one sentence, as what the user can mend."""


def train(run: Run, begin: Start, evaluate: Evaluate | None = None, out: Any = None) -> TrainState:
    """Runs to `total_steps`, to a preemption (state saved), or to an error; returns the last state."""
    config, total = run.config, run.config.total_steps
    with jax.set_mesh(run.mesh):
        state, counters, origin = begin
        logging.info("%s", origin)
        start = int(state.step)
        clock = Clock(_peak(run))
        clock.restore(counters.get("clock", {}))
        writer = Metrics(
            run.workdir.root,
            total_steps=total,
            resume_step=start,
            console_keys=CONSOLE,
            tensorboard=config.log.tensorboard,
            out=out,
        )
        writer.note(origin)
        watchdog = Watchdog(config.watchdog.startup_s, config.watchdog.step_s).start()
        profile, late = ProfileWindow(config.profile, run.workdir.profile), Late()
        try:
            for number in range(start + 1, total + 1):
                bucket = run.buckets.at(number)
                run.manager.check()
                profile.before(number, state.step)
                with clock.measure("data"):
                    batch = to_device(next(bucket.batches), run.layout.sharding(), config.data.rows)
                with _patience(watchdog, bucket, config.watchdog.startup_s):
                    state, metrics = bucket.step(state, batch)
                stop = run.manager.preempted(number)
                if number == total or stop or run.manager.should_save(number):
                    with clock.measure("save"), watchdog.paused("save"):
                        _save(run, number, state, clock)
                done = late.push(number, metrics)
                if done is not None:
                    _report(run, writer, clock, *done)
                watchdog.beat(f"step {number}")
                if stop and number < total:
                    writer.note(f"told to stop: step {number} is saved; the same command goes on from there")
                    break
            if (done := late.flush()) is not None:
                _report(run, writer, clock, *done, final=True)
        except TooManySkipped:
            _save(run, int(state.step), state, clock)
            raise
        finally:
            profile.close(state.step)
            watchdog.close()
            run.manager.close()
            writer.close()
    return state


def _patience(watchdog: Watchdog, bucket: Bucket, limit_s: float) -> contextlib.AbstractContextManager[None]:
    """The first step of a bucket is compiled, which may take as long as the run's first step."""
    first, bucket.used = not bucket.used, True
    return (
        watchdog.paused(f"the first step that removes {bucket.fraction}", limit_s)
        if first
        else contextlib.nullcontext()
    )


def _save(run: Run, number: int, state: TrainState, clock: Clock) -> None:
    counters = {"skipped": int(state.skipped), "all_skipped": int(state.all_skipped), "clock": clock.state()}
    meta = build_meta(step=number, config=run.raw_config, data_layout=run.layout.describe(), counters=counters)
    run.manager.save(number, state.params, state.opt, DataState(run.buckets), meta)


def _report(run: Run, writer: Metrics, clock: Clock, number: int, metrics: dict[str, Any], final: bool = False) -> None:
    """Counts every step; writes every `log.every`-th; ends the run after too many skipped updates."""
    config = run.config
    bucket = run.buckets.at(number)
    clock.tick(float(metrics.pop("count/tokens")), float(metrics.pop("count/frames")), bucket.flops)
    counts = metrics.pop("scores", None)
    in_row = int(metrics["skipped_in_row"])
    if in_row:
        writer.note(f"step {number}: loss or gradient is not finite, update skipped ({in_row} in a row)")
    if in_row >= config.loss.max_skipped:
        raise TooManySkipped(
            f"{in_row} updates in a row had a NaN or an infinity, up to step {number}; the parameters "
            "are those of the last good update: lower the learning rates, or look at the data of these steps"
        )
    if number % config.log.every == 0 or final or number == 1:
        rates = learning_rates(run.plan.optimizer.config, number)
        extra = {f"lr/{name}": rate for name, rate in rates.items()} | clock.report() | _data_stats(run.buckets)
        writer.write(number, {**metrics, **extra, "pruned_fraction": float(bucket.fraction)})
    if counts is not None and number % config.log.histogram_every == 0:
        writer.histogram(number, "scores", counts, np.linspace(0, 1, HISTOGRAM_BINS + 1))


def _peak(run: Run) -> float | None:
    """FLOP/s of all devices together, None when unknown."""
    peak = peak_flops(run.mesh.devices.flat[0].device_kind)
    return None if peak is None else peak * run.mesh.size


def _data_stats(buckets: Buckets) -> dict[str, float]:
    return {f"data/{name}": value for name, value in buckets.stats().items()}
