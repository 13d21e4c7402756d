"""Attention inside groups of tokens (frames, cells): full, with an optional bias and mask per key."""

import jax
import jax.numpy as jnp


def masked_softmax(logits: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32; a row with nothing allowed gives exact zeros and zero gradients.

    `logits` float32 [..., k], `allowed` bool broadcastable to it (None: everything).
    """
    if allowed is None:
        return jax.nn.softmax(logits, axis=-1)
    # A finite stand-in, not -inf: inf - inf would put NaN into the gradient of a row that is fully masked.
    logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(logits - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def frame_attention_xla(
    q: jax.Array, k: jax.Array, v: jax.Array, key_bias: jax.Array | None, key_mask: jax.Array | None
) -> jax.Array:
    """The plain XLA kernel of `attend_frames`; shapes as there."""
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if key_bias is not None:
        logits = logits + key_bias.astype(jnp.float32)[..., None, None, :]
    allowed = None if key_mask is None else key_mask[..., None, None, :]
    weights = masked_softmax(logits, allowed).astype(v.dtype)
    out = jnp.einsum("...hqk,...khd->...qhd", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)
