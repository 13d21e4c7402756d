"""Norms with float32 statistics. Their gradients start from the input alone, see `recomputed`."""

import jax
import jax.numpy as jnp

from sttts_jax.ops.remat import recomputed


@recomputed
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over as many last axes as `scale` has; statistics in float32, result in x.dtype.

    The normalised value is cast back before it is multiplied, as in Molmo2.
    """
    axes = tuple(range(-scale.ndim, 0))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axes, keepdims=True) + eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


@recomputed
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last axis, in float32; result in x.dtype."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
