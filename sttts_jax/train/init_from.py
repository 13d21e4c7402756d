"""A run's first parameters from another checkpoint: its arrays, and fresh ones where it may lack them."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax.ckpt.meta import saved_config
from sttts_jax.ckpt.restore import load_known_params, read_step_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.models.config import VlmConfig
from sttts_jax.paths import PathLike
from sttts_jax.text_table import text_table
from sttts_jax.train.config import ModelConfig, section
from sttts_jax.train.state import Blueprint, TrainState, init_params
from sttts_jax.trees import flatten_mapping, map_named, named_leaves

# Parameters that a checkpoint to start from may lack: what this package adds to a released model.
ADDED = (r"vit/scorer/.*", r".*_lora_[ab]")
# Sizes that may differ from those of the model in the checkpoint although the parameters fit.
FREE_SIZES = ("llm.dropout", "vit.prune_after", "lora")


def state_from(init_from: PathLike, plan: Blueprint, seed: int) -> tuple[TrainState, str]:
    """(state with the parameters of `init_from`, float32 on the mesh, moments zero; the sentence for the log).

    What the checkpoint lacks of ADDED gets the values that a fresh run of `seed` would have. Raises FileNotFoundError
    without a checkpoint, TreeMismatch with a table when other parameters differ, ValueError when sizes do that no array
    shows.
    """
    step = whole_step(init_from)
    loaded, lacking = load_known_params(step, plan.abstract.params, ADDED)
    _check_sizes(init_from, saved_config(read_step_meta(step)), plan.model.cfg)
    leaves = loaded | _fresh_leaves(plan, seed, lacking)
    params = map_named(lambda name, _: leaves[name], plan.abstract.params)
    opt = jax.jit(plan.optimizer.init, out_shardings=plan.shardings.opt)(params)
    counts = jnp.int32(0), jnp.int32(0), jnp.int32(0)  # three arrays: the step takes the memory of each
    state = jax.device_put(TrainState(*counts, params, opt), plan.shardings)
    return state, f"parameters from {step}: {len(loaded)} arrays; fresh: {', '.join(lacking) or 'none'}"


def _fresh_leaves(plan: Blueprint, seed: int, names: list[str]) -> dict[str, jax.Array]:
    """{name: array} as `fresh_state` makes them; no other parameter is computed, or needs memory."""
    if not names:
        return {}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        params = named_leaves(nn.unbox(init_params(plan.model, plan.shape, key)))
        return {name: params[name] for name in names}

    shardings = named_leaves(plan.shardings.params)
    return jax.jit(make, out_shardings={name: shardings[name] for name in names})(jax.random.key(seed))


def _check_sizes(init_from: PathLike, saved: dict[str, Any], model: VlmConfig) -> None:
    """The same arrays mean another model under another rope, norm or choice of features."""
    if "model" not in saved:
        raise ValueError(f"init_from={init_from}: its meta does not say what model it is; convert it again")
    theirs, ours = _sizes(section("model", ModelConfig, saved["model"]).vlm), _sizes(model)
    rows = [
        (key, str(theirs.get(key)), str(ours.get(key)))
        for key in sorted(theirs | ours)
        if theirs.get(key) != ours.get(key)
    ]
    if rows:
        raise ValueError(
            f"init_from={init_from}: its parameters fit, but its model has other sizes; give them in "
            f"model.overrides:\n{text_table(('size', 'checkpoint', 'this run'), rows)}"
        )


def _sizes(cfg: VlmConfig) -> dict[str, Any]:
    flat = flatten_mapping(dataclasses.asdict(cfg))
    return {
        key: value for key, value in flat.items() if not any(key == f or key.startswith(f"{f}.") for f in FREE_SIZES)
    }
