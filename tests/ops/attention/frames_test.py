"""Attention inside frames: counts, bias and masks as the formula has them, no NaN anywhere, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.frames import attend_frames, plan_stream

_frames = jax.jit(attend_frames)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


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


def test_the_front_door_refuses_in_one_sentence() -> None:
    x = jnp.zeros((1, 4, 4, 8))
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
