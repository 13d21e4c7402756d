"""Attention inside groups of tokens (frames, cells): full, with an optional bias and mask per key."""

import jax
import jax.numpy as jnp


def masked_softmax(logits: jax.Array, allowed: jax.Array | None) -> jax.Array:
    """Softmax over the last axis in float32; a row with nothing allowed gives exact zeros and zero gradients.

    `logits` float32 [..., k], `allowed` bool broadcastable to it (None: everything).
    """
    return jax.nn.softmax(logits, axis=-1) if allowed is None else _masked_softmax(logits, allowed)


@jax.custom_vjp
def _masked_softmax(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    # A finite stand-in, not -inf: inf - inf would put NaN into a row that is fully masked.
    lowest = jnp.finfo(jnp.float32).min
    logits = jnp.where(allowed, logits, lowest)
    top = jnp.max(logits, axis=-1, keepdims=True)  # [..., 1]
    weights = jnp.exp(logits - top)  # [..., k]; ones where nothing is allowed
    total = jnp.sum(weights, axis=-1, keepdims=True)  # [..., 1]
    return weights * jnp.where(top > lowest, 1.0 / total, 0.0)


def _masked_softmax_fwd(logits: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights = _masked_softmax(logits, allowed)
    return weights, weights


def _masked_softmax_bwd(weights: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    # The weights alone say everything: autodiff would keep the logits, the mask and the exponentials as well.
    return weights * (g - jnp.sum(weights * g, axis=-1, keepdims=True)), None


_masked_softmax.defvjp(_masked_softmax_fwd, _masked_softmax_bwd)


def attend_frames_xla(
    q: jax.Array, k: jax.Array, v: jax.Array, key_bias: jax.Array | None, key_mask: jax.Array | None
) -> jax.Array:
    """The plain XLA kernel of `attend_frames`; shapes as there."""
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    # [..., H, Sq, Sk] from here on; a key's bias and mask are the same for all heads and queries.
    if key_bias is not None:
        logits = logits + key_bias.astype(jnp.float32)[..., None, None, :]
    allowed = None if key_mask is None else key_mask[..., None, None, :]
    weights = masked_softmax(logits, allowed).astype(v.dtype)
    out = jnp.einsum("...hqk,...khd->...qhd", weights, v, preferred_element_type=jnp.float32)  # [..., Sq, H, d]
    return out.astype(q.dtype)
