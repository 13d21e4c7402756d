"""Where a run's first state comes from: its own newest checkpoint, else `init_from`, else fresh parameters."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.manager import Restored
from sttts_jax.ckpt.meta import saved_config
from sttts_jax.ckpt.restore import load_known_params, read_step_meta
from sttts_jax.models.config import VlmConfig
from sttts_jax.train.config import ModelConfig, RunConfig, section
from sttts_jax.train.run import Run
from sttts_jax.train.state import Blueprint, TrainState, fresh_state, init_params
from sttts_jax.trees import flatten_mapping, map_named, named_leaves, table

# Parameters that a checkpoint to start from may lack: what this package adds to a released model.
ADDED = (r"vit/scorer/.*", r".*_lora_[ab]")
# Sizes that may differ from those of the model in the checkpoint although the parameters fit.
FREE_SIZES = ("llm.dropout", "vit.prune_after", "lora")


class Start(NamedTuple):
    """counters: of the checkpoint that is resumed, else {}. origin: one sentence for the log."""

    state: TrainState
    counters: dict[str, Any]
    origin: str


def first_state(run: Run) -> Start:
    """The run's newest whole checkpoint; else the parameters of `init_from`, else fresh ones, with zero moments."""
    abstract = run.plan.abstract
    found: Restored | None = run.manager.restore_latest(
        abstract.params, abstract.opt, DataState(run.buckets), config=run.raw_config, layout=run.layout.describe()
    )
    if found is not None:
        counters = found.meta["counters"]
        state = _state(run.plan, found.params, found.opt, found.step, counters["skipped"], counters["all_skipped"])
        return Start(state, counters, f"resumed from step {found.step}")
    if run.config.init_from:
        return Start(*initial_state(run.config, run.plan))
    return Start(fresh_state(run.config, run.plan, run.config.data.row_shape), {}, "all parameters are fresh")


def initial_state(config: RunConfig, plan: Blueprint) -> tuple[TrainState, dict[str, Any], str]:
    """(state with the parameters of `init_from`, float32 on the mesh, moments zero; {}; the sentence for the log).

    What the checkpoint lacks of ADDED gets the values that a fresh run would have. Raises FileNotFoundError without a
    checkpoint, TreeMismatch with a table when other parameters differ, ValueError when sizes do that no array shows.
    """
    step = resolve_step(config.init_from)
    loaded, lacking = load_known_params(step, plan.abstract.params, ADDED)
    _check_sizes(config, saved_config(read_step_meta(step)))
    leaves = loaded | _fresh_leaves(config, plan, lacking)
    params = map_named(lambda name, _: leaves[name], plan.abstract.params)
    opt = jax.jit(plan.optimizer.init, out_shardings=plan.shardings.opt)(params)
    origin = f"parameters from {step}: {len(loaded)} arrays; fresh: {', '.join(lacking) or 'none'}"
    return _state(plan, params, opt, 0, 0, 0), {}, origin


def _state(plan: Blueprint, params: Any, opt: Any, step: int, skipped: int, all_skipped: int) -> TrainState:
    counts = jnp.int32(step), jnp.int32(skipped), jnp.int32(all_skipped)
    return jax.device_put(TrainState(*counts, params, opt), plan.shardings)


def _fresh_leaves(config: RunConfig, plan: Blueprint, names: list[str]) -> dict[str, jax.Array]:
    """{name: array} as `fresh_state` makes them; no other parameter is computed, or needs memory."""
    if not names:
        return {}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        params = named_leaves(nn.unbox(init_params(plan.model, config.data.row_shape, key)))
        return {name: params[name] for name in names}

    shardings = named_leaves(plan.shardings.params)
    return jax.jit(make, out_shardings={name: shardings[name] for name in names})(jax.random.key(config.seed))


def _check_sizes(config: RunConfig, saved: dict[str, Any]) -> None:
    """The same arrays mean another model under another rope, norm or choice of features."""
    if "model" not in saved:
        raise ValueError(f"init_from={config.init_from}: its meta does not say what model it is; convert it again")
    theirs, ours = _sizes(section("model", ModelConfig, saved["model"]).vlm), _sizes(config.vlm)
    rows = [
        (key, str(theirs.get(key)), str(ours.get(key)))
        for key in sorted(theirs | ours)
        if theirs.get(key) != ours.get(key)
    ]
    if rows:
        raise ValueError(
            f"init_from={config.init_from}: its parameters fit, but its model has other sizes; give them in "
            f"model.overrides:\n{table(('size', 'checkpoint', 'this run'), rows)}"
        )


def _sizes(cfg: VlmConfig) -> dict[str, Any]:
    flat = flatten_mapping(dataclasses.asdict(cfg))
    return {
        key: value for key, value in flat.items() if not any(key == f or key.startswith(f"{f}.") for f in FREE_SIZES)
    }
