"""Frozen parameters: no gradient of theirs is ever formed, nothing else changes."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.mesh import make_mesh
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.optimizer import FROZEN
from sttts_jax.train.state import Blueprint, TrainState, blueprint, fresh_state
from sttts_jax.train.step import train_step
from sttts_jax.trees import named_leaves, tree_bytes
from tests.models.batches import Sizes, Talk, make_batch

SIZES = Sizes(frames=4, cells=9, unpruned=72, vocab=512, pixels=72)
SCORER = ("vit/scorer/.*",)
# A language model whose weights are much larger than anything that a row of 54 tokens makes of them.
WIDE = {"llm": {"layers": 2, "mlp": 4096}}


def _run(overrides: dict[str, Any] | None = None, **optimizer: Any) -> RunConfig:
    config = defaults()
    config.model.overrides = overrides or {}
    config.total_steps, config.optimizer.warmup = 5, 0
    config.data.max_frames = config.data.frames_per_row = SIZES.frames
    config.data.items_per_row, config.data.rows, config.data.row_length = 1, 2, SIZES.unpruned - 18
    config.optimizer.update(optimizer)
    return RunConfig.build(config)


def _plan(run: RunConfig) -> Blueprint:
    return blueprint(run, make_mesh({"data": 1}, jax.devices()[:1]))


def _batch() -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, make_batch([[Talk(4, 1, (2,), seed=i)] for i in range(2)], SIZES))


def _step(run: RunConfig) -> tuple[Blueprint, Any]:
    plan = _plan(run)
    return plan, jax.jit(
        functools.partial(train_step, run.loss, run.seed, plan.model, plan.optimizer), donate_argnums=0
    )


def _trained(run: RunConfig, steps: int) -> tuple[Blueprint, TrainState, TrainState, dict[str, Any]]:
    plan, step = _step(run)
    first = fresh_state(plan, run.seed)
    state = jax.tree.map(jnp.copy, first)
    for _ in range(steps):
        state, metrics = step(state, _batch())
    return plan, first, state, jax.device_get(metrics)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_parameters_stay_and_the_others_learn(accumulate: int) -> None:
    config = _run(train_only=SCORER)
    run = dataclasses.replace(config, loss=dataclasses.replace(config.loss, accumulate=accumulate))
    plan, first, state, metrics = _trained(run, 2)
    labels, after = named_leaves(plan.optimizer.labels), named_leaves(state.params)
    for name, before in named_leaves(first.params).items():
        same = np.array_equal(before, after[name])
        assert same == (labels[name] == FROZEN), name
    assert [name for name in metrics if name.startswith("grad_norm/")] == ["grad_norm/scorer"]
    moments = sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim)
    assert moments == 2 * sum(x.size for name, x in after.items() if name.startswith("vit/scorer/"))


def test_the_trained_gradients_are_those_of_training_all() -> None:
    _, _, _, every = _trained(_run(), 1)
    _, _, _, some = _trained(_run(train_only=(*SCORER, "connector/.*", "llm/.*")), 1)
    assert some["loss"] == pytest.approx(every["loss"], rel=1e-6)
    assert "grad_norm/vit" not in some
    for group in ("scorer", "connector", "llm"):
        assert some[f"grad_norm/{group}"] == pytest.approx(every[f"grad_norm/{group}"], rel=1e-4)


@pytest.mark.optimized
def test_training_the_scorer_alone_is_cheaper_and_forms_no_gradient_of_the_rest() -> None:
    """Of the compiled steps: FLOPs, bytes of intermediate results, and what has the shape of an LLM weight."""
    flops, temp, made = {}, {}, {}
    for name, settings in (("all", {}), ("scorer", {"train_only": SCORER})):
        plan, step = _step(_run(WIDE, **settings))
        compiled = step.lower(plan.abstract, _batch()).compile()
        flops[name] = compiled.cost_analysis()["flops"]
        temp[name] = compiled.memory_analysis().temp_size_in_bytes
        made[name] = set(re.findall(r"= f32\[(?:2,96,2,4096|512,96)\]\S* ([\w-]+)\(", compiled.as_text()))
    assert flops["scorer"] < 0.8 * flops["all"]
    assert temp["all"] - temp["scorer"] > tree_bytes(plan.abstract.params["llm"])
    assert made["scorer"] <= {"parameter", "get-tuple-element"} < made["all"]  # gate_up of both blocks, the embedding
