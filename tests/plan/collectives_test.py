"""What collectives carry: found in a program of which every one is known."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sttts_jax.mesh import BATCH_AXES, make_mesh
from sttts_jax.plan.collectives import Collective, find_collectives, totals
from sttts_jax.plan.hlo import read_program

ROWS, WIDTH, LAYERS = 24, 64, 3


class _State(NamedTuple):
    params: dict[str, jax.Array]


def _program(axes: dict[str, int], between: Any) -> list[Collective]:
    """A gradient step through LAYERS products, with `between` applied to rows [ROWS, WIDTH] on the way."""
    mesh = make_mesh(axes)

    def step(state: _State, batch: dict[str, jax.Array]) -> tuple[_State, jax.Array]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            x, _ = jax.lax.scan(lambda x, w: (between(jnp.tanh(x @ w)), None), batch["x"], params["w"])
            return jnp.sum(x**2)

        value, grads = jax.value_and_grad(loss)(state.params)
        return _State({"w": state.params["w"] - grads["w"]}), value

    def abstract(shape: tuple[int, ...], *spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    state = _State({"w": abstract((LAYERS, WIDTH, WIDTH), None, "fsdp", "tensor")})
    batch = {"x": abstract((ROWS, WIDTH), BATCH_AXES)}
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None)).lower(state, batch)
    return find_collectives(read_program(compiled.compile().as_text() or ""), mesh.shape)


def _rows_over(*axes: str) -> Any:
    return lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def test_a_step_that_leaves_rows_where_they_are() -> None:
    found = _program({"data": 4, "fsdp": 2}, lambda x: x)
    assert {one.carries for one in found} == {"parameter", "gradient", "scalar"}
    gathered = sum(one.bytes for one in found if one.carries == "parameter")
    assert gathered >= 4 * LAYERS * WIDTH * WIDTH  # once forward, and once backward unless it was kept
    assert {one.axes for one in found if one.carries == "parameter"} == {("fsdp",)}
    summed = {axis for one in found if one.carries == "gradient" for axis in one.axes}
    assert summed == {"data", "fsdp"} and all(one.exact for one in found)
    assert {one.dims[0] for one in found if one.dims}.isdisjoint({3, 6, 12, ROWS})  # rows of 8, 4, 2 devices and one


def test_rows_that_travel_are_found() -> None:
    found = _program({"data": 4, "fsdp": 2}, lambda x: _rows_over()(_rows_over(BATCH_AXES)(x) * 2))
    moved = [one for one in found if one.carries == "activation"]
    assert moved and {one.kind for one in moved} >= {"all-gather"}
    assert any(ROWS in one.dims and one.times == LAYERS for one in moved)


def test_split_widths_are_named() -> None:
    found = _program({"data": 4, "tensor": 2}, lambda x: x)
    moved = [one for one in found if one.carries not in ("parameter", "gradient", "scalar")]
    assert moved and {(one.carries, one.axes) for one in moved} == {("tensor", ("tensor",))}


def test_totals_add_up() -> None:
    one = Collective("all-reduce", "gradient", ("data",), 4, "f32", (8, 4), 3, True, "")
    other = Collective("all-gather", "parameter", ("fsdp",), 2, "bf16", (8, 4), 1, True, "")
    (first, second) = totals([one, other, one])
    assert (first.kind, first.count, first.bytes) == ("all-reduce", 6, 6 * 8 * 4 * 4)
    assert first.moved == pytest.approx(first.bytes * 2 * 3 / 4)
    assert second.moved == pytest.approx(8 * 4 * 2 / 2)
