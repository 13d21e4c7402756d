"""Norms: the formula, float32 statistics for bfloat16 inputs, and the axes that a scale covers."""

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.ops.norm import layer_norm, rms_norm


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_rms_norm_is_the_formula() -> None:
    x, scale = _normal(0, 3, 5), jnp.arange(1.0, 6.0)
    want = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), want, atol=1e-6)


def test_rms_norm_covers_as_many_axes_as_its_scale() -> None:
    x, scale = _normal(0, 3, 4, 8), _normal(1, 4, 8)
    flat = rms_norm(x.reshape(3, 32), scale.reshape(32), 1e-6)
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), flat.reshape(3, 4, 8), atol=1e-6)


def test_layer_norm_is_the_formula() -> None:
    x, scale, bias = 100 + _normal(0, 3, 5), jnp.arange(1.0, 6.0), jnp.arange(5.0)
    y = np.asarray(x, np.float64)
    want = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(layer_norm(x, scale, bias, 1e-6), want, atol=1e-4)


def test_statistics_are_float32_and_the_dtype_stays() -> None:
    # 4096 equal numbers: a bfloat16 sum of squares would stall far below the true one.
    x = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    out = rms_norm(x, jnp.ones(4096), 1e-6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)
    assert layer_norm(x, jnp.ones(4096), jnp.zeros(4096), 1e-6).dtype == jnp.bfloat16
