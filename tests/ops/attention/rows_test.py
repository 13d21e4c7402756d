"""Attention over packed rows: blocks equal to the dense form, nothing of size S x S, and what is refused."""

import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from sttts_jax.ops.attention.rows import attend_rows, plan_rows
from tests.ops.attention.row_rule_test import make_rule

LENGTH = 3 * (7 + 6) + 2


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, rule: RowRule, block: int = 512) -> jax.Array:
    return attend_rows(q, k, v, plan_rows(rule, rule, kernels="xla", block=block))


@st.composite
def _rows(draw: st.DrawFn) -> RowRule:
    """Rows of up to three examples with vision tokens and message trees, then padding."""
    vision, example, segment = [], [], []
    for e in range(draw(st.integers(1, 3))):
        prefix = draw(st.lists(st.booleans(), min_size=1, max_size=7))
        branches = draw(st.lists(st.integers(1, 3), max_size=2))
        vision += prefix + [False] * sum(branches)
        segment += [100_000 * e + 10_000] * len(prefix)
        segment += [100_000 * e + b for b, n in enumerate(branches) for _ in range(n)]
        example += [e] * (len(prefix) + sum(branches))
    rest = LENGTH - len(example)
    return make_rule(vision + [False] * rest, example + [-1] * rest, segment + [-1] * rest)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, rule: RowRule) -> jax.Array:
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask_rows(rule, rule)[:, None], logits, -1e30), axis=-1)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return jnp.where((rule.example >= 0)[..., None, None], out, 0)


@partial(jax.jit, static_argnums=(0,))
def _value_and_gradients(block: int, rule: RowRule) -> tuple:
    """Of a weighted sum of the output; block 0 is the dense form."""
    inputs = [_normal(i, 1, LENGTH, heads, 8) for i, heads in enumerate((4, 2, 2))]
    f = (lambda *a: _attend_rows(*a, rule, block)) if block else (lambda *a: _dense(*a, rule))
    return f(*inputs), jax.grad(lambda *a: jnp.sum(f(*a) * _normal(3, 1, LENGTH, 4, 8)), (0, 1, 2))(*inputs)


@settings(max_examples=25, deadline=None)
@given(_rows(), st.sampled_from([1, 5, LENGTH]))
def test_blocks_equal_the_dense_form_forward_and_gradient(rule: RowRule, block: int) -> None:
    (out, grads), (dense_out, dense_grads) = (_value_and_gradients(size, rule) for size in (block, 0))
    np.testing.assert_allclose(out, dense_out, atol=2e-6)
    for got, want in zip(grads, dense_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=5e-6)
    assert not out[0, -2:].any()


@pytest.mark.parametrize("block", [4, 64])
def test_another_example_changes_nothing_not_even_a_bit(block: int) -> None:
    rule = make_rule([0, 1, 1, 0, 0, 1, 1, 0, 0], [0] * 4 + [1] * 5)
    q, k, v = _normal(0, 1, 9, 4, 8), _normal(1, 1, 9, 2, 8), _normal(2, 1, 9, 2, 8)
    f = jax.jit(lambda q, k, v: _attend_rows(q, k, v, rule, block))
    before, after = f(q, k, v), f(*(x.at[:, :4].add(3.0) for x in (q, k, v)))
    np.testing.assert_array_equal(before[:, 4:], after[:, 4:])
    grad = jax.jit(jax.grad(lambda *a: f(*a)[:, 4:].sum(), (0, 1, 2)))(q, k, v)
    assert all(not g[:, :4].any() for g in grad)


@pytest.mark.optimized
def test_a_long_row_never_holds_an_s_by_s_array() -> None:
    length = 4096
    rule = RowRule.of(jnp.ones((1, length), bool), jnp.zeros((1, length), jnp.int32))
    shapes = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (2, 1, 1)]
    step = jax.grad(lambda q, k, v, r: _attend_rows(q, k, v, r).sum(), (0, 1, 2))
    text = jax.jit(step).lower(*shapes, rule).compile().as_text()
    sizes = [prod(int(n) for n in dims.split(",")) for dims in re.findall(r"\w\d*\[([\d,]+)\]", text)]
    assert 512 * length <= max(sizes) < length * length // 2


def test_rows_in_bfloat16_keep_their_dtype_and_stay_close() -> None:
    rule = make_rule([0, 1, 1, 0, 1, 0], [0] * 6)
    q, k, v = _normal(0, 1, 6, 4, 8), _normal(1, 1, 6, 2, 8), _normal(2, 1, 6, 2, 8)
    out = jax.jit(_attend_rows)(*(x.astype(jnp.bfloat16) for x in (q, k, v)), rule)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), jax.jit(_dense)(q, k, v, rule), atol=0.05)


def test_the_front_door_refuses_in_one_sentence() -> None:
    x, rule = jnp.zeros((1, 4, 4, 8)), make_rule([0] * 4, [0] * 4)
    with pytest.raises(ValueError, match="Hkv dividing H"):
        _attend_rows(x, x[:, :, :3], x[:, :, :3], rule)
    with pytest.raises(ValueError, match="The plan was made for rows"):
        _attend_rows(x[:, :2], x, x, rule)
    with pytest.raises(ValueError, match="Every field of rule_q must have one shape"):
        plan_rows(rule._replace(vision=rule.vision[:, :2]), rule, kernels="xla")
    with pytest.raises(ValueError, match="positive number of queries"):
        plan_rows(rule, rule, kernels="xla", block=0)
