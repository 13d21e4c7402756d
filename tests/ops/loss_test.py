"""The loss: formula, chunks equal to the whole, memory of a long row, weights and padding."""

import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.loss import LossSums, cross_entropy_sums, head_loss


def _inputs(length: int = 23) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((2, length, 8)), rng.standard_normal((50, 8))
    targets, weights = rng.integers(0, 50, (2, length)), np.maximum(rng.standard_normal((2, length)), 0)
    return tuple(jnp.asarray(x, jnp.int32 if x is targets else jnp.float32) for x in (hidden, head, targets, weights))


def _mean(sums: LossSums, z: float = 0.0) -> jax.Array:
    """What a training step makes of the sums; 0 where nothing carries weight."""
    return (sums.cross_entropy + z * sums.z) / jnp.maximum(sums.weight, 1e-9)


def test_sums_are_the_formula() -> None:
    hidden, head, targets, weights = _inputs()
    logits = np.asarray(hidden @ head.T, np.float64)
    total = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    sums = cross_entropy_sums(jnp.asarray(logits), targets, weights)
    np.testing.assert_allclose(sums.cross_entropy, (weights * (total - chosen)).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.z, (weights * total**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.weight, weights.sum(), rtol=1e-6)
    assert sums.tokens == (weights > 0).sum()
    assert sums.correct == ((logits.argmax(-1) == targets) & (weights > 0)).sum()
    want = ((weights * (total - chosen + 0.1 * total**2)).sum()) / weights.sum()
    np.testing.assert_allclose(_mean(sums, 0.1), want, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 23, 64])
def test_chunks_equal_the_whole_forward_and_gradient(chunk: int) -> None:
    hidden, head, targets, weights = _inputs()
    whole = lambda h, t: cross_entropy_sums(h @ t.T, targets, weights)  # noqa: E731
    parts = lambda h, t: head_loss(h, t, targets, weights, chunk=chunk)  # noqa: E731
    for got, want in zip(jax.jit(parts)(hidden, head), jax.jit(whole)(hidden, head), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    grads = [jax.jit(jax.grad(lambda *a: _mean(f(*a), 1e-4), (0, 1)))(hidden, head) for f in (parts, whole)]  # noqa: B023
    for got, want in zip(*grads, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_positions_without_weight_do_not_count_whatever_they_hold() -> None:
    hidden, head, targets, weights = _inputs()
    off = weights == 0
    other = head_loss(hidden, head, jnp.where(off, 10_000, targets), jnp.where(off, -1.0, weights))
    for got, want in zip(other, head_loss(hidden, head, targets, weights), strict=True):
        np.testing.assert_array_equal(got, want)
    nothing = head_loss(hidden, head, targets, jnp.zeros_like(weights))
    assert _mean(nothing, 1e-4) == 0.0


def test_sums_of_two_batches_add_up() -> None:
    hidden, head, targets, weights = _inputs()
    rows = [head_loss(hidden[i : i + 1], head, targets[i : i + 1], weights[i : i + 1]) for i in range(2)]
    both = head_loss(hidden, head, targets, weights)
    np.testing.assert_allclose(_mean(jax.tree.map(jnp.add, *rows), 1e-4), _mean(both, 1e-4), rtol=1e-6)


def test_bfloat16_states_give_float32_sums_and_a_float32_head_gradient() -> None:
    hidden, head, targets, weights = _inputs()
    low = hidden.astype(jnp.bfloat16)
    loss, grad = jax.value_and_grad(lambda t: _mean(head_loss(low, t, targets, weights, chunk=4)))(head)
    assert loss.dtype == grad.dtype == jnp.float32
    np.testing.assert_allclose(loss, _mean(head_loss(hidden, head, targets, weights)), rtol=2e-2)


@pytest.mark.optimized
def test_logits_of_the_whole_row_never_exist() -> None:
    length, vocab, chunk = 2048, 4096, 128
    shapes = [((1, length, 8), jnp.float32), ((vocab, 8), jnp.float32)]
    arrays = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((1, length), jnp.int32), ((1, length), jnp.float32))]
    step = jax.grad(lambda h, t, y, w: _mean(head_loss(h, t, y, w, chunk=chunk), 1e-4), (0, 1))
    text = jax.jit(step).lower(*arrays).compile().as_text()
    sizes = [prod(int(n) for n in dims.split(",")) for dims in re.findall(r"\w\d*\[([\d,]+)\]", text)]
    assert chunk * vocab <= max(sizes) < length * vocab // 4


@pytest.mark.parametrize("answer", [0, 1, 3, 4, 5, 20, 23])
def test_the_head_meets_only_as_many_chunks_as_have_weight(answer: int) -> None:
    """NaN in the positions of the other chunks: not even times zero do they come in."""
    hidden, head, targets, _ = _inputs()
    weights = jnp.zeros((2, 23)).at[0, 23 - answer :].set(1.0).at[1, :answer].set(2.0)
    order = np.argsort(np.asarray(weights <= 0), axis=1, kind="stable")
    rest = order[:, -(-answer // 4) * 4 :]
    poisoned = jnp.asarray(hidden).at[jnp.arange(2)[:, None], rest].set(jnp.nan)
    whole = lambda h, t: _mean(cross_entropy_sums(h @ t.T, targets, weights), 1e-4)  # noqa: E731
    loss = jax.jit(jax.value_and_grad(lambda h, t: _mean(head_loss(h, t, targets, weights, chunk=4), 1e-4), (0, 1)))
    got, grads = loss(poisoned, head)
    want, want_grads = jax.value_and_grad(whole, (0, 1))(hidden, head)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert loss._cache_size() == 1


def test_a_chunk_must_hold_something() -> None:
    with pytest.raises(ValueError, match="positive number of positions"):
        head_loss(*_inputs(), chunk=0)
