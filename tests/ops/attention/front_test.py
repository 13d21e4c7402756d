"""Attention: the exact mask of packed rows, blocks equal to the dense form, nothing of size S x S, no NaN anywhere."""

import re
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.ops.attention.frames import attend_frames, plan_stream
from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from sttts_jax.ops.attention.rows import attend_rows, plan_rows

_frames = jax.jit(attend_frames)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, rule: RowRule, block: int = 512) -> jax.Array:
    return attend_rows(q, k, v, plan_rows(rule, rule, kernels="xla", block=block))


def _rule(vision: list[int], example: list[int], segment: list[int] | None = None) -> RowRule:
    arrays = [jnp.asarray([x]) for x in (vision, example, segment or [0] * len(vision))]
    return RowRule.of(arrays[0] > 0, *arrays[1:])


def _allowed(rule: RowRule) -> dict[int, set[int]]:
    return {q: set(np.flatnonzero(row).tolist()) for q, row in enumerate(np.asarray(jax.jit(mask_rows)(rule, rule))[0])}


# --- the rule -------------------------------------------------------------------------------------------------------


def test_vision_tokens_see_each_other_and_text_stays_causal() -> None:
    rule = _rule([0, 1, 1, 0, 1, 1, 0], [0] * 7)
    first, frames = {0}, {1, 2, 4, 5}
    assert _allowed(rule) == {
        0: first,
        1: first | frames,
        2: first | frames,
        3: {0, 1, 2, 3},
        4: set(range(6)),
        5: set(range(6)),
        6: set(range(7)),
    }


def test_packed_examples_never_see_each_other() -> None:
    one = _allowed(_rule([0, 1, 1, 0, 1, 1, 0], [0] * 7))
    two = _allowed(_rule([0, 1, 1, 0, 1, 1, 0] * 2, [0] * 7 + [1] * 7))
    assert two == {**one, **{q + 7: {k + 7 for k in keys} for q, keys in one.items()}}


def test_branches_of_a_tree_see_the_prefix_and_themselves() -> None:
    allowed = _allowed(_rule([0] * 7, [0] * 7, [10_000] * 3 + [0, 0, 1, 1]))
    assert allowed[2] == {0, 1, 2}
    assert allowed[4] == {0, 1, 2, 3, 4}
    assert allowed[6] == {0, 1, 2, 5, 6}


def test_padding_sees_nothing_and_is_not_seen() -> None:
    allowed = _allowed(_rule([1, 0, 0], [0, 0, -1], [0, 0, -1]))
    assert allowed == {0: {0}, 1: {0, 1}, 2: set()}


# --- rows -----------------------------------------------------------------------------------------------------------


LENGTH = 3 * (7 + 6) + 2


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
    return _rule(vision + [False] * rest, example + [-1] * rest, segment + [-1] * rest)


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
    rule = _rule([0, 1, 1, 0, 0, 1, 1, 0, 0], [0] * 4 + [1] * 5)
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
    rule = _rule([0, 1, 1, 0, 1, 0], [0] * 6)
    q, k, v = _normal(0, 1, 6, 4, 8), _normal(1, 1, 6, 2, 8), _normal(2, 1, 6, 2, 8)
    out = jax.jit(_attend_rows)(*(x.astype(jnp.bfloat16) for x in (q, k, v)), rule)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), jax.jit(_dense)(q, k, v, rule), atol=0.05)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_counts_are_a_mask_of_the_first_keys() -> None:
    q, k, v = (_normal(i, 2, 3, 7, 4, 8) for i in range(3))
    counts = jnp.asarray([[0, 1, 7], [3, 7, 2]])
    np.testing.assert_array_equal(
        _frames(q, k, v, counts=counts), _frames(q, k, v, key_mask=jnp.arange(7) < counts[..., None])
    )


def test_frames_equal_the_formula_with_bias_and_mask() -> None:
    q, k, v = (_normal(i, 2, 3, n, 4, 8) for i, n in enumerate((5, 7, 7)))
    bias, mask = _normal(4, 2, 3, 7), _normal(5, 2, 3, 7) > -0.3
    logits = np.einsum("...qhd,...khd->...hqk", q, k) / 8**0.5 + np.asarray(bias)[..., None, None, :]
    weights = np.exp(logits) * np.asarray(mask)[..., None, None, :]
    assert mask.any(-1).all() and not mask.all()
    want = np.einsum("...hqk,...khd->...qhd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(_frames(q, k, v, key_bias=bias, key_mask=mask), want, atol=2e-6)


def test_hidden_keys_are_as_good_as_absent() -> None:
    q, k, v = (_normal(i, 2, 6, 4, 8) for i in range(3))
    mask = jnp.broadcast_to(jnp.arange(6) < 4, (2, 6))
    np.testing.assert_allclose(_frames(q, k, v, key_mask=mask), _frames(q, k[:, :4], v[:, :4]), atol=1e-6)


def test_a_frame_without_keys_gives_zero_and_finite_gradients() -> None:
    q, k, v = (_normal(i, 2, 6, 4, 8) for i in range(3))
    bias, mask = _normal(3, 2, 6), jnp.asarray([[False] * 6, [True] * 6])

    def out(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return _frames(q, k, v, key_bias=bias, key_mask=mask)

    assert not out(q, k, v, bias)[0].any()
    for grad in jax.jit(jax.grad(lambda *a: jnp.sum(out(*a) ** 2), (0, 1, 2, 3)))(q, k, v, bias):
        assert jnp.isfinite(grad).all() and not grad[0].any() and grad[1].any()


def test_a_bias_as_low_as_float32_goes_is_not_a_mask_but_stays_finite() -> None:
    q, k, v = (_normal(i, 1, 3, 1, 4) for i in range(3))
    low = jnp.full((1, 3), -1e30)
    np.testing.assert_allclose(
        attend_frames(q, k, v, key_bias=low), jnp.broadcast_to(v.mean(1)[:, None], v.shape), atol=1e-6
    )


# --- what is refused ------------------------------------------------------------------------------------------------


def test_the_front_door_refuses_in_one_sentence() -> None:
    x, rule = jnp.zeros((1, 4, 4, 8)), _rule([0] * 4, [0] * 4)
    with pytest.raises(ValueError, match="Hkv dividing H"):
        _attend_rows(x, x[:, :, :3], x[:, :, :3], rule)
    with pytest.raises(ValueError, match="The plan was made for rows"):
        _attend_rows(x[:, :2], x, x, rule)
    with pytest.raises(ValueError, match="Every field of rule_q must have shape"):
        plan_rows(rule._replace(vision=rule.vision[:, :2]), rule, kernels="xla")
    with pytest.raises(ValueError, match="positive number of queries"):
        plan_rows(rule, rule, kernels="xla", block=0)
    with pytest.raises(ValueError, match="the 'gpu' kernels take slots, not streams"):
        plan_stream(jnp.zeros((1, 4), jnp.int32), frames=1, max_segment=4, kernels="gpu")
    with pytest.raises(ValueError, match="key_mask is float32; it must be bool"):
        attend_frames(x, x, x, key_mask=jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match="key_bias has shape"):
        attend_frames(x, x, x, key_bias=jnp.zeros((4,)))
    with pytest.raises(ValueError, match="counts has shape"):
        attend_frames(x, x, x, counts=jnp.zeros((4,), jnp.int32))
    with pytest.raises(ValueError, match="cannot hide single keys"):
        attend_frames(x, x, x, key_mask=jnp.ones((1, 4), bool), kernels="gpu")
