"""The real train step on 8 devices: the same losses and kept cells as on one, and no collective from packing."""

import collections
import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest

from sttts_jax.data.device import to_device
from sttts_jax.data.schema import RowShape, check_batch
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.models import presets
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.state import Blueprint, TrainState, boxed_state, build_model, fresh_state
from sttts_jax.train.step import train_step
from tests.models.batches import Sizes, Talk, make_batch
from tests.models.small import CFG as SMALL

# Sizes that two devices, or heads that four, can share.
CFG = dataclasses.replace(
    SMALL,
    vit=dataclasses.replace(SMALL.vit, heads=4, head_dim=4),
    llm=dataclasses.replace(SMALL.llm, heads=4, kv_heads=4, vocab=30, extra_vocab=2),
)
SIZES = Sizes(frames=4, cells=4, unpruned=32, vocab=30)
ROWS, STEPS = 8, 3
Axes = tuple[tuple[str, int], ...]
ONE, DATA, BOTH = (("data", 1),), (("data", 8),), (("data", 4), ("fsdp", 2))
ROWS_IN_PARTS, MIXED = (("data", 2), ("sequence", 4)), (("fsdp", 2), ("tensor", 2), ("sequence", 2))
COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "sharded_test", CFG)


def _run(method: str = "scorer", accumulate: int = 1) -> RunConfig:
    config = defaults()
    config.model.preset, config.pruning.method, config.loss.accumulate = "sharded_test", method, accumulate
    config.total_steps = STEPS
    for rate in ("llm_lr", "vit_lr", "connector_lr", "scorer_lr"):
        config.optimizer[rate] = 3e-3  # large, so that a wrong gradient shows in the next loss
    config.optimizer.warmup = 1
    config.data.max_frames = config.data.frames_per_row = SIZES.frames
    config.data.items_per_row, config.data.rows = 2, ROWS
    return RunConfig.build(config)


def _shape(run: RunConfig) -> RowShape:
    """Rows of U tokens; S is what is left of them."""
    shape = run.data.row_shape
    return dataclasses.replace(shape, length=SIZES.unpruned - (shape.unpruned - shape.length))


def _batch(step: int, shape: RowShape) -> dict[str, np.ndarray]:
    """Rows of one video, of two, and with padding."""
    kinds = ((4,), (2, 2), (3,), (1, 3))
    rows = [[Talk(n, 1, (2,), seed=100 * step + 10 * i + j) for j, n in enumerate(kinds[i % 4])] for i in range(ROWS)]
    batch = make_batch(rows, SIZES)
    check_batch(batch, shape)
    return batch


def _plan(run: RunConfig, mesh: jax.sharding.Mesh) -> Blueprint:
    """As `state.blueprint`, but parameters of any size are split."""
    shape = _shape(run)
    model = build_model(run.model, run.pruning, shape)
    boxed, optimizer = boxed_state(run.optimizer, run.total_steps, model, shape)
    return Blueprint(model, shape, optimizer, boxed, mesh, min_size=1)


def _mesh(axes: dict[str, int]) -> jax.sharding.Mesh:
    count = int(np.prod(list(axes.values())))
    return make_mesh(axes, jax.devices()[:count])


@functools.cache
def _first_state() -> TrainState:
    """Made by the program of the largest mesh, each shard where it belongs."""
    run, mesh = _run(), _mesh(dict(BOTH))
    with jax.set_mesh(mesh):
        return fresh_state(_plan(run, mesh), run.seed)


@functools.cache
def _train(axes: Axes, accumulate: int = 1) -> tuple[list[dict], list[np.ndarray], Any]:
    """(metrics, kept cells) of every step, and the last parameters."""
    run, mesh = _run(accumulate=accumulate), _mesh(dict(axes))
    plan = _plan(run, mesh)
    with jax.set_mesh(mesh):
        state = jax.device_put(_first_state(), plan.shardings)
        step = jax.jit(
            functools.partial(train_step, run.loss, run.seed, plan.model, plan.optimizer),
            out_shardings=(plan.shardings, None),
        )
        see = jax.jit(lambda params, b: plan.model.apply({"params": params}, b, method="loss").kept)
        metrics, kept = [], []
        for number in range(STEPS):
            batch = to_device(_batch(number, _shape(run)), DataLayout(mesh).sharding(), ROWS)
            kept.append(np.asarray(see(state.params, batch)))
            state, out = step(state, batch)
            metrics.append(jax.tree.map(np.asarray, out))
        split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
        assert bool(split) == any(name != "data" for name, _ in axes)
        return metrics, kept, jax.tree.map(np.asarray, state.params)


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "accumulate"), [(BOTH, 1), (ROWS_IN_PARTS, 1), (MIXED, 2)])
def test_a_mesh_trains_as_one_device_does(axes: Axes, accumulate: int) -> None:
    """Every metric of every step, every kept cell, and the parameters at the end."""
    want, want_kept, want_params = _train(ONE)
    got, got_kept, got_params = _train(axes, accumulate)
    np.testing.assert_array_equal(got_kept, want_kept)
    assert len({mask.tobytes() for mask in want_kept}) == STEPS
    for step in range(STEPS):
        assert set(got[step]) == set(want[step])
        for name, value in want[step].items():
            np.testing.assert_allclose(got[step][name], value, rtol=1e-4, atol=1e-5, err_msg=f"{name}, step {step}")
        assert want[step]["skipped"] == 0 and np.isfinite(want[step]["loss"])
    # Adam divides by the root of the squared gradient: rounding grows where a gradient is near zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), got_params, want_params)


@functools.cache
def _compiled(axes: Axes, method: str, gradient: bool = False) -> jax.stages.Compiled:
    """The forward pass of the whole model, or its gradient."""
    run, mesh = _run(method), _mesh(dict(axes))
    plan = _plan(run, mesh)
    model = plan.model

    def forward(params: Any, batch: dict[str, jax.Array]) -> Any:
        hidden, prefix = model.apply({"params": params}, batch)
        return hidden, prefix.vit.kept.mask

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        out = model.apply({"params": params}, batch, method="loss")
        return out.task.cross_entropy + out.aux

    sharding = DataLayout(mesh).sharding()
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for name, x in make_batch([[Talk(4)]] * ROWS, SIZES).items()
    }
    function = jax.grad(loss) if gradient else forward
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(plan.abstract.params, batch).compile()


def _collectives(axes: Axes, method: str, gradient: bool = False) -> collections.Counter:
    """How often each kind stands in the compiled program."""
    return collections.Counter(COLLECTIVE.findall(str(_compiled(axes, method, gradient).as_text())))


@pytest.mark.parametrize("method", ["scorer", "easy", "reference_tracking", "none"])
def test_rows_over_devices_need_no_collective(method: str) -> None:
    assert not _collectives(DATA, method)


@pytest.mark.parametrize(("pruned", "unpruned"), [("scorer", "soft_only"), ("easy", "none")])
def test_packing_adds_no_collective_to_split_parameters(pruned: str, unpruned: str) -> None:
    """Pairs of methods with the same parameters: the gathers of those are all there is, in both."""
    assert _collectives(BOTH, unpruned)["all-gather"] > 0
    assert _collectives(BOTH, pruned) == _collectives(BOTH, unpruned)


@pytest.mark.slow
def test_the_gradient_of_packing_adds_none_either() -> None:
    """Over rows alone, all a gradient needs is the sum of the parameters' gradients."""
    assert set(_collectives(DATA, "scorer", gradient=True)) == {"all-reduce"}


@pytest.mark.slow
def test_devices_that_share_rows_repeat_nothing() -> None:
    """Each computes and holds as much as where it has rows of its own."""
    whole, shared = (_compiled(axes, "scorer", gradient=True) for axes in (DATA, (("data", 4), ("sequence", 2))))
    assert shared.cost_analysis()["flops"] == pytest.approx(whole.cost_analysis()["flops"], rel=0.05)
    of_whole, of_shared = whole.memory_analysis(), shared.memory_analysis()
    assert of_shared.temp_size_in_bytes < 1.1 * of_whole.temp_size_in_bytes
