"""What a training loop starts from: mesh, data, model, checkpoints, made ready, and the first state on the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.manager import Manager
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.train.buckets import Buckets, make_buckets, open_streams
from sttts_jax.train.config import RunConfig
from sttts_jax.train.init_from import state_from
from sttts_jax.train.state import Blueprint, TrainState, blueprint, fresh_state


@dataclasses.dataclass
class Run:
    """Everything that a loop holds beside its state."""

    config: RunConfig
    raw_config: dict[str, Any]
    workdir: Workdir
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    layout: DataLayout
    plan: Blueprint
    buckets: Buckets
    manager: Manager


class Start(NamedTuple):
    """counters: of the checkpoint that is resumed, else {}. origin: one sentence for the log."""

    state: TrainState
    counters: dict[str, Any]
    origin: str


# Asks the model of a step: (run, number of the step, its parameters on the run's mesh) -> metrics. Every process calls.
Evaluate = Callable[[Run, int, Any], dict[str, float]]
# Makes one for a config. Called before any device is touched; raises ValueError where the config asks for nonsense.
Evaluator = Callable[[RunConfig], Evaluate]


def prepare(config: RunConfig, raw_config: dict[str, Any], workdir: Workdir, tokenizer: Tokenizer) -> Run:
    """The parts of a run, cheapest mistakes first; the data starts to load before anything compiles."""
    mesh = make_mesh(dataclasses.asdict(config.mesh), rows=config.micro_rows)
    config.check_mesh(mesh.shape)
    layout = DataLayout(mesh)
    layout.rows_per_process(config.micro_rows)
    _check_tokenizer(config, tokenizer)
    streams = open_streams([part.data for part in config.buckets], tokenizer, layout)
    plan = blueprint(config, mesh)
    buckets = make_buckets(config.buckets, plan, streams)
    manager = Manager(workdir.checkpoints, config.checkpoint)
    return Run(config, raw_config, workdir, tokenizer, mesh, layout, plan, buckets, manager)


def _check_tokenizer(config: RunConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.base_size != config.vlm.llm.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.base_size} base rows and model {config.model.preset} {config.vlm.llm.vocab}"
            "; use the tokenizer that belongs to the model"
        )


def first_state(run: Run) -> Start:
    """The run's newest whole checkpoint; else the parameters of `init_from`, else fresh ones, with zero moments."""
    with jax.set_mesh(run.mesh):
        resumed = _resumed(run)
        if resumed is not None:
            return resumed
        if run.config.init_from:
            state, origin = state_from(run.config.init_from, run.plan, run.config.seed)
            return Start(state, {}, origin)
        return Start(fresh_state(run.plan, run.config.seed), {}, "all parameters are fresh")


def _resumed(run: Run) -> Start | None:
    abstract = run.plan.abstract
    found = run.manager.restore_latest(abstract.params, abstract.opt, DataState(run.buckets), config=run.raw_config)
    if found is None:
        return None
    counters = found.meta["counters"]
    counts = jnp.int32(found.step), jnp.int32(counters["skipped"]), jnp.int32(counters["all_skipped"])
    state = jax.device_put(TrainState(*counts, found.params, found.opt), run.plan.shardings)
    return Start(state, counters, f"resumed from step {found.step}")
