"""Attention frame by frame against a dense masked reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.frames_cpu import attend_stream_cpu, plan_stream_cpu
from tests.ops.attention.frames_tpu_test import LONGEST, make_segments, reference


def _draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _check(counts, length, biased=False, dtype=jnp.float32, heads=2, seen=None):
    """Result and gradients of qkv and bias; `seen` hides tokens."""
    segments, frames = make_segments(counts, length), len(counts[0])
    rows = len(counts)
    qkv, g = _draw(rows, length, 3, heads, 8).astype(dtype), _draw(rows, length, heads, 8, seed=1).astype(dtype)
    bias = 3 * _draw(rows, length, seed=2) if biased else None
    hidden = segments if seen is None else jnp.where(seen, segments, -1)
    plan = plan_stream_cpu(segments, seen, frames=frames, max_segment=LONGEST)
    got, pull = jax.vjp(lambda x, b: attend_stream_cpu(x, plan, b), qkv, bias)
    want, pull_want = jax.vjp(lambda x, b: reference(x, hidden, frames, b), qkv.astype(jnp.float32), bias)
    tolerance = 2e-5 if dtype == jnp.float32 else 3e-2
    assert got.dtype == dtype
    for a, b in zip(
        jax.tree.leaves((got, pull(g))), jax.tree.leaves((want, pull_want(g.astype(jnp.float32)))), strict=True
    ):
        largest = max(float(jnp.abs(b).max()), 1e-2)
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=tolerance * largest)


@pytest.mark.parametrize("biased", [False, True])
def test_frames_of_every_size(biased):
    _check([[0, 1, 128, 129, 729, 5], [729, 0, 0, 1, 130, 64]], 1000, biased)


@pytest.mark.parametrize("count", [0, 1, 80, 81, 82, 128, 129, 729])
def test_one_frame(count):
    """Also at the edges of the branches, 81 tokens apart."""
    _check([[count]], LONGEST)


@pytest.mark.parametrize("seed", range(2))
def test_random_counts(seed):
    rng = np.random.default_rng(seed)
    counts = [rng.multinomial(rng.integers(0, 700), rng.dirichlet([0.5] * 9)).tolist() for _ in range(3)]
    _check(counts, 701, biased=True)


def test_tokens_that_do_not_exist_are_not_seen():
    seen = jnp.asarray(np.random.default_rng(3).random((2, 400)) < 0.8)
    _check([[100, 30, 0, 200], [50, 50, 150, 150]], 400, biased=True, seen=seen)


def test_half_precision():
    _check([[100, 30, 0, 200]], 400, biased=True, dtype=jnp.bfloat16)


def test_one_program_for_all_counts():
    kernel = jax.jit(lambda x, s: attend_stream_cpu(x, plan_stream_cpu(s, None, frames=3, max_segment=256)))
    for counts in ([[100, 100, 56]], [[1, 255, 0]], [[0, 0, 0]]):
        kernel(_draw(1, 256, 3, 1, 8), make_segments(counts, 256))
    assert kernel._cache_size() == 1


def test_what_lies_in_padding_reaches_nothing():
    """Not even NaN, in either pass."""
    segments = make_segments([[100, 30], [50, 60]], 200)
    plan = plan_stream_cpu(segments, None, frames=2, max_segment=128)
    qkv, dead = _draw(2, 200, 3, 2, 8), (segments == 2)[..., None, None]
    kernel = jax.value_and_grad(lambda x: jnp.sum(jnp.where(dead, 0, jnp.sin(attend_stream_cpu(x, plan)))))
    want, gradient = kernel(qkv)
    got, other = kernel(jnp.where(dead[..., None], jnp.nan, qkv))
    assert got == want
    np.testing.assert_array_equal(other, gradient)
    assert not np.any(np.where(dead[..., None], gradient, 0))
