"""The front door of attention: it checks, refuses what a kernel cannot honour, and calls the kernel.

Two shapes of attention exist in the model: inside frames (`attend_frames`) and over packed rows (`attend_rows`).
"""

import jax
import jax.numpy as jnp

from sttts_jax.ops.frame_attention import frame_attention_xla, masked_softmax
from sttts_jax.ops.row_attention import RowRule, mask_rows, row_attention_xla

__all__ = ["RowRule", "attend_frames", "attend_rows", "mask_rows", "masked_softmax"]

FRAME_KERNELS = {"xla": frame_attention_xla}
ROW_KERNELS = {"xla": row_attention_xla}


def _pick(kernels: dict, impl: str, what: str):
    if impl not in kernels:
        raise ValueError(f"No {what} attention kernel is called {impl!r}; use one of {sorted(kernels)}.")
    return kernels[impl]


def attend_frames(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    key_bias: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    impl: str = "xla",
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside each group of tokens.

    q [..., Sq, H, d], k and v [..., Sk, H, d]; `key_bias` finite floats [..., Sk], the same for all heads and queries;
    `key_mask` bool [..., Sk], False hides a key. Softmax in float32, result [..., Sq, H, d] in q.dtype. A group
    without a visible key gives exact zeros, and finite gradients.
    """
    kernel = _pick(FRAME_KERNELS, impl, "frame")
    if k.shape != v.shape or q.shape[-2:] != k.shape[-2:] or q.shape[:-3] != k.shape[:-3]:
        raise ValueError(
            f"Frame attention wants q [..., Sq, H, d] and k, v [..., Sk, H, d]; got {q.shape}, {k.shape}, {v.shape}."
        )
    for name, x in (("key_bias", key_bias), ("key_mask", key_mask)):
        if x is not None and x.shape != k.shape[:-2]:
            raise ValueError(f"{name} has shape {x.shape}; one entry per key is {k.shape[:-2]}.")
    if key_mask is not None and key_mask.dtype != jnp.bool_:
        raise ValueError(f"key_mask is {key_mask.dtype}; it must be bool, True where the key is visible.")
    return kernel(q, k, v, key_bias, key_mask)


def attend_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rule_q: RowRule,
    rule_k: RowRule,
    *,
    impl: str = "xla",
    block: int = 512,
) -> jax.Array:
    """Grouped-query attention over packed rows under the rule of `mask_rows`.

    q [B, S, H, d], k and v [B, S2, Hkv, d] with Hkv dividing H (key head j serves query heads j*H/Hkv ...), rules
    [B, S] and [B, S2]. Rows longer than `block` are done block by block: neither pass holds S x S2 values. Softmax in
    float32, result [B, S, H, d] in q.dtype; padding queries give exact zeros.
    """
    kernel = _pick(ROW_KERNELS, impl, "row")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "Row attention wants q [B, S, H, d] and k, v [B, S2, Hkv, d] with Hkv dividing H; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    for name, rule, x in (("rule_q", rule_q, q), ("rule_k", rule_k, k)):
        if any(field.shape != x.shape[:2] for field in rule):
            raise ValueError(f"Every field of {name} must have shape {x.shape[:2]}, one entry per token.")
    if block < 1:
        raise ValueError(f"block is {block}; it must be a positive number of queries.")
    return kernel(q, k, v, rule_q, rule_k, block)
