"""Attention over packed rows in XLA: blocks of queries, each against all keys."""

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.frames_xla import masked_softmax
from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from sttts_jax.ops.attention.row_shapes import Planned


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, rule_q: RowRule, rule_k: RowRule) -> jax.Array:
    """All keys for one block of queries: q [B, s, Hkv, G, d], k and v [B, S2, Hkv, d] -> [B, s, Hkv, G, d]."""
    # Heads before tokens: plain batched matrix products, on CPU faster than the same sums in [B, S, H, d] order.
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, Hkv, G, s, d], [B, Hkv, S2, d]
    logits = jnp.einsum("bhgqd,bhkd->bhgqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = masked_softmax(logits, mask_rows(rule_q, rule_k)[:, None, None])  # [B, Hkv, G, s, S2]
    out = jnp.einsum("bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).transpose(0, 3, 1, 2, 4)


def _split(x: jax.Array, count: int, block: int, fill: int) -> jax.Array:
    """[B, S, ...] -> [count, B, block, ...], padded at the end of S."""
    pad = [(0, 0), (0, count * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


@struct.dataclass
class XlaRowsPlan:
    """What `attend_rows_xla` is told: the rules of queries and keys, and the queries of a block."""

    rule_q: RowRule
    rule_k: RowRule
    block: int = struct.field(pytree_node=False)

    @property
    def planned(self) -> Planned:
        """The rows that `attend_rows_xla` takes with this plan."""
        return self.rule_q.order.shape, self.rule_k.order.shape


def attend_rows_xla(
    q: jax.Array, k: jax.Array, v: jax.Array, rule_q: RowRule, rule_k: RowRule, block: int
) -> jax.Array:
    """The blockwise XLA kernel of `attend_rows`; shapes as there.

    Queries go in blocks, one after the other, and each block is recomputed in the backward pass, so that at most
    block x S2 logits of a head live at any time.
    """
    batch, length, heads, width = q.shape
    groups = heads // k.shape[2]
    q = q.reshape(batch, length, k.shape[2], groups, width)  # [B, S, Hkv, G, d]
    if length <= block:
        return _attend_block(q, k, v, rule_q, rule_k).reshape(batch, length, heads, width)
    count = -(-length // block)
    block = -(-length // count)  # equal blocks: little padding
    blocks = _split(q, count, block, 0)  # [count, B, block, Hkv, G, d]
    rules = RowRule(*(_split(x, count, block, fill) for x, fill in zip(rule_q, (0, False, -1, 0), strict=True)))
    one = jax.checkpoint(lambda q_i, rule_i: _attend_block(q_i, k, v, rule_i, rule_k), prevent_cse=False)
    out = jax.lax.map(lambda args: one(*args), (blocks, rules))  # [count, B, block, Hkv, G, d]
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * block, heads, width)[:, :length]
