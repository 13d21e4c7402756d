"""Attention inside slots of tokens on NVIDIA GPUs: cuDNN's flash kernel, which skips what lies beyond a slot's count.

cuDNN takes no bias per key, so the bias travels in the heads: two more channels of the keys hold it, the same channels
of the queries hold ones. What cuDNN leaves in the places of padding is its own affair; nothing of it gets out of here.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from sttts_jax.ops.attention.round_up import round_up

# cuDNN trains on even lengths only; multiples of 8 also keep its float32 statistics of a head aligned (729 -> 736).
_TOKENS = 8
# It takes heads of a multiple of 8 channels, and of at most 128 on every GPU that has the kernel.
_CHANNELS, _WIDEST = 8, 128
# A bias beyond this (its weight is 0, unless all keys have such) is cut: kernels take scaled logits from their maximum
# in one rounding, which for logits of 1e10 would leave differences that exp turns into infinity. float16 holds it too.
_LARGEST = 5000.0


def attend_frames_gpu(
    q: jax.Array, k: jax.Array, v: jax.Array, key_bias: jax.Array | None, counts: jax.Array | None
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v among the first `counts` tokens of each slot, by cuDNN.

    q, k, v [..., S, H, d] bfloat16 or float16; `key_bias` finite floats [..., S], the same for all heads and queries,
    and +-5000 at most in effect; `counts` int32 [...], 0 <= counts <= S tokens of a slot (None: all S). Softmax in
    float32, result [..., S, H, d] in q.dtype. The tokens beyond the count are padding: they give exact zeros and get
    zero gradients, whatever they hold, and so do all tokens of a slot with a count of 0. A length that is no multiple
    of 8 costs a copy of each array.

    Raises ValueError for float32 and for heads of more than 128 channels.
    """
    if q.ndim < 3 or not q.shape == k.shape == v.shape:
        raise ValueError(
            f"cuDNN attention wants q, k and v of one shape [..., S, H, d]; got {q.shape}, {k.shape}, {v.shape}."
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"cuDNN attention wants bfloat16 or float16, got {q.dtype}, {k.dtype} and {v.dtype}; "
            "compute in bfloat16, or take the 'xla' kernel."
        )
    if key_bias is not None and key_bias.shape != q.shape[:-2]:
        raise ValueError(f"key_bias has shape {key_bias.shape}; one entry per key is {q.shape[:-2]}.")
    if counts is not None and (counts.shape != q.shape[:-3] or not jnp.issubdtype(counts.dtype, jnp.integer)):
        raise ValueError(
            f"counts is {counts.dtype} {counts.shape}; it must be whole numbers {q.shape[:-3]}, one per slot."
        )
    width = round_up(q.shape[-1] + (0 if key_bias is None else 2), _CHANNELS)
    if width > _WIDEST:
        raise ValueError(
            f"cuDNN attention takes heads of at most {_WIDEST} channels, and these need {width}; take the 'xla' kernel."
        )
    return _attend(q, k, v, key_bias, counts, "cudnn")


def augment_key_bias(q: jax.Array, k: jax.Array, key_bias: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """q' [..., d + 2] and k' [..., d + 2] with scale * q' k'^T = scale * q k^T + key_bias.

    q, k [..., S, H, d], `key_bias` [..., S] as in `attend_frames_gpu`. The bias over the scale is split into what
    the dtype of k can hold and the rest, so that bfloat16 keeps 16 bits of it; ones are exact in any dtype. The
    gradient needs no rule of its own: the rest is a difference, so the second channel adds nothing to the first's.
    """
    limits = jnp.finfo(k.dtype)
    bias = jnp.clip(key_bias.astype(jnp.float32), -_LARGEST, _LARGEST) / scale
    # One value a head before rounding: so the gradients of the heads are summed in float32.
    bias = jnp.broadcast_to(bias[..., None, None], (*k.shape[:-1], 1))  # [..., S, H, 1]
    # Not a cast to and fro, which XLA may drop as excess precision.
    high = jax.lax.reduce_precision(bias, limits.nexp, limits.nmant)
    ones = jnp.ones((*q.shape[:-1], 2), q.dtype)
    return (
        jnp.concatenate([q, ones], axis=-1),
        jnp.concatenate([k, high.astype(k.dtype), (bias - high).astype(k.dtype)], axis=-1),
    )


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_bias: jax.Array | None,
    counts: jax.Array | None,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """`attend_frames_gpu` by any implementation of `jax.nn.dot_product_attention`."""
    *lead, length, heads, width = q.shape
    scale = width**-0.5
    q, k, v = (x.reshape(-1, length, heads, width) for x in (q, k, v))  # [slots, S, H, d]
    slots = q.shape[0]
    if key_bias is not None:
        q, k = augment_key_bias(q, k, key_bias.reshape(slots, length), scale)  # [slots, S, H, d + 2]

    padded, channels = round_up(length, _TOKENS), round_up(q.shape[-1], _CHANNELS)
    alive = lengths = None
    if counts is not None or padded != length:
        counts = jnp.full(slots, length, jnp.int32) if counts is None else counts.reshape(slots).astype(jnp.int32)
        alive = (jnp.arange(padded) < counts[:, None])[..., None, None]  # [slots, padded, 1, 1]
        lengths = jnp.maximum(counts, 1)  # a softmax over nothing is NaN

    fit = functools.partial(_fit, length=padded, width=channels, alive=alive)
    out = jax.nn.dot_product_attention(
        fit(q),  # [slots, padded, H, channels]
        fit(k),
        fit(v),
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    # The same mask twice: here for what comes out of padding, in `_fit` for the gradients that come out of it.
    out = out if alive is None else jnp.where(alive, out, 0)
    return out[:, :length, :, :width].reshape(*lead, length, heads, width)


def _fit(x: jax.Array, length: int, width: int, alive: jax.Array | None) -> jax.Array:
    """x [B, S, H, d] with zeros up to `length` and `width`, and wherever `alive` [B, length, 1, 1] is not."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, width - x.shape[3])))
    return x if alive is None else jnp.where(alive, x, 0)
