"""Who sees whom in packed rows: causal text, bidirectional vision, examples that never see each other (Molmo2)."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp


class RowRule(NamedTuple):
    """What decides which token sees which; one entry per token, all [B, S].

    order    int32, place in the sequence (what "causal" compares)
    vision   bool, token of the bidirectional vision set
    example  int32, example of the row, -1 for padding
    segment  int32, subsegment of a message tree; a query sees keys of the same or a higher one
    """

    order: jax.Array
    vision: jax.Array
    example: jax.Array
    segment: jax.Array

    @classmethod
    def of(cls, vision: jax.Array, example: jax.Array, segment: jax.Array | None = None) -> Self:
        """The rule of rows whose tokens are stored in sequence order; no `segment` means no message trees."""
        order = jnp.broadcast_to(jnp.arange(example.shape[-1], dtype=jnp.int32), example.shape)
        return cls(order, vision, example, jnp.zeros_like(example) if segment is None else segment)


def mask_rows(rule_q: RowRule, rule_k: RowRule) -> jax.Array:
    """Dense bool mask [B, Sq, Sk] of who sees whom (Molmo2).

    allow(q, k) = k is no padding, q and k belong to one example, segment_q <= segment_k, and
    (order_k <= order_q or both are vision tokens). Padding queries see nothing.
    """
    q = RowRule(*(x[..., :, None] for x in rule_q))
    k = RowRule(*(x[..., None, :] for x in rule_k))
    same = (q.example == k.example) & (k.example >= 0)
    return same & (q.segment <= k.segment) & ((k.order <= q.order) | (q.vision & k.vision))
