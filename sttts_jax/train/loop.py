"""The training loop. Its order is law, because what a checkpoint holds must agree with itself:

    check the save that goes on  ->  next batch  ->  step  ->  save  ->  metrics of the step before

The data position is saved right after the step that used its last batch, so a resumed run sees every batch once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.manager import Manager, Restored
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.data.device import to_device
from sttts_jax.data.pipeline import Batches, train_batches
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.models.flops import example_pairs, row_flops, train_factor
from sttts_jax.paths import as_path
from sttts_jax.train.clock import Clock, peak_flops
from sttts_jax.train.config import RunConfig
from sttts_jax.train.metrics import Late, Metrics
from sttts_jax.train.optimizer import learning_rates
from sttts_jax.train.profile import ProfileWindow
from sttts_jax.train.state import Blueprint, TrainState, blueprint, fresh_state
from sttts_jax.train.step import HISTOGRAM_BINS, train_step
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
CHECKPOINTS = "checkpoints"


class TooManySkipped(ValueError):
    """Updates in a row had a NaN or an infinity; said in one sentence, as what the user can mend."""


@dataclasses.dataclass
class Run:
    """Everything a loop holds."""

    config: RunConfig
    workdir: Any
    mesh: jax.sharding.Mesh
    layout: DataLayout
    plan: Blueprint
    batches: Batches
    manager: Manager
    raw_config: dict[str, Any]


def prepare(config: RunConfig, workdir: Any, raw_config: dict[str, Any], tokenizer: Tokenizer) -> Run:
    """Mesh, data, model, checkpoints of a run; the data starts to load before anything compiles."""
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    layout = DataLayout(mesh)
    layout.rows_per_process(config.data.rows // config.loss.accumulate)
    if tokenizer.base_size != config.vlm.llm.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.base_size} base rows and model {config.model.preset} {config.vlm.llm.vocab}"
            "; use the tokenizer that belongs to the model"
        )
    batches = train_batches(config.data, tokenizer, shard_index=layout.shard_index, shard_count=layout.shard_count)
    plan = blueprint(config, mesh, config.data.row_shape)
    manager = Manager(as_path(workdir) / CHECKPOINTS, config.checkpoint)
    return Run(config, as_path(workdir), mesh, layout, plan, batches, manager, raw_config)


def first_state(run: Run) -> tuple[TrainState, dict[str, Any]]:
    """(state, counters): the newest whole checkpoint, else fresh parameters."""
    abstract = run.plan.abstract
    found: Restored | None = run.manager.restore_latest(
        abstract.params, abstract.opt, DataState(run.batches), config=run.raw_config, layout=run.layout.describe()
    )
    if found is None:
        return fresh_state(run.config, run.plan, run.config.data.row_shape), {}
    counters = found.meta["counters"]
    step, skipped, all_skipped = (jnp.int32(x) for x in (found.step, counters["skipped"], counters["all_skipped"]))
    state = TrainState(step, skipped, all_skipped, found.params, found.opt)
    logging.info("resumed from step %d", found.step)
    return jax.device_put(state, run.plan.shardings), counters


def train(run: Run, out: Any = None) -> TrainState:
    """Runs to `total_steps`, to a preemption (state saved), or to an error; returns the last state."""
    config, total = run.config, run.config.total_steps
    with jax.set_mesh(run.mesh):
        state, counters = first_state(run)
        step = jax.jit(
            lambda s, b: train_step(config, run.plan.model, run.plan.optimizer, s, b),
            donate_argnums=0,
            out_shardings=(run.plan.shardings, None),
        )
        start = int(state.step)
        clock = Clock(*_flops(run))
        clock.restore(counters.get("clock", {}))
        writer = Metrics(
            run.workdir,
            total_steps=total,
            resume_step=start,
            console_keys=CONSOLE,
            tensorboard=config.log.tensorboard,
            out=out,
        )
        watchdog = Watchdog(config.watchdog.startup_s, config.watchdog.step_s).start()
        profile, late = ProfileWindow(config.profile, run.workdir / "profile"), Late()
        try:
            for number in range(start + 1, total + 1):
                run.manager.check()
                profile.before(number, state.step)
                with clock.measure("data"):
                    batch = to_device(next(run.batches), run.layout.sharding(), config.data.rows)
                state, metrics = step(state, batch)
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


def _save(run: Run, number: int, state: TrainState, clock: Clock) -> None:
    counters = {"skipped": int(state.skipped), "all_skipped": int(state.all_skipped), "clock": clock.state()}
    meta = build_meta(step=number, config=run.raw_config, data_layout=run.layout.describe(), counters=counters)
    run.manager.save(number, state.params, state.opt, DataState(run.batches), meta)


def _report(run: Run, writer: Metrics, clock: Clock, number: int, metrics: dict[str, Any], final: bool = False) -> None:
    """Counts every step; writes every `log.every`-th; ends the run after too many skipped updates."""
    config = run.config
    clock.tick(float(metrics.pop("count/tokens")), float(metrics.pop("count/frames")))
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
        rates = learning_rates(config.optimizer.build(config.total_steps, config.pruning.scores), number)
        extra = {f"lr/{name}": rate for name, rate in rates.items()} | clock.report() | _data_stats(run.batches)
        writer.write(number, {**metrics, **extra})
    if counts is not None and number % config.log.histogram_every == 0:
        writer.histogram(number, "scores", counts, np.linspace(0, 1, HISTOGRAM_BINS + 1))


def _flops(run: Run) -> tuple[float, float | None]:
    """(FLOPs of an update, peak of all devices or None): rows taken as full, survivors as spread evenly over frames."""
    config, shape = run.config, run.config.data.row_shape
    kept = None if config.pruning.drops == "0" else [shape.kept / shape.frames] * shape.frames
    vision = shape.kept + 2 * shape.frames
    flops = row_flops(
        config.vlm,
        frames=shape.frames,
        kept_cells=kept,
        tokens=shape.length,
        pairs=example_pairs(shape.length, vision),
        loss_tokens=max(shape.length - vision, 0),
    )
    peak = peak_flops(run.mesh.devices.flat[0].device_kind)
    total = flops.total * config.data.rows * train_factor(config.model.remat)
    return total, None if peak is None else peak * run.mesh.size


def _data_stats(batches: Batches) -> dict[str, float]:
    return {f"data/{name}": value for name, value in batches.stats().items()}
