"""Who sees whom in packed rows: causal text, bidirectional vision, examples that never see each other (Molmo2).

The rule is here alone: for two tokens (`sees`), for all tokens of two rows (`mask_rows`), and for two blocks of tokens,
of which only the least and greatest fields are known (`block_meets`). Kernels say which tokens they ask about.
"""

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


EXAMPLE = RowRule._fields.index("example")
# Examples of padding in packed rules: never equal, so that comparing examples is enough.
NO_QUERY, NO_KEY = -1, -2


def sees(q: RowRule, k: RowRule) -> jax.Array:
    """bool, of the broadcast shape of the fields: does the query see the key, if neither is padding?

    They belong to one example, segment_q <= segment_k, and order_k <= order_q or both are vision tokens. `vision` is
    bool or 0 and 1; where padding may be among them, its examples are NO_QUERY and NO_KEY.
    """
    near = (k.order <= q.order) | ((q.vision & k.vision) > 0)
    return (q.example == k.example) & (q.segment <= k.segment) & near


def mask_rows(rule_q: RowRule, rule_k: RowRule) -> jax.Array:
    """Dense bool mask [B, Sq, Sk] of who sees whom; padding (any negative example) neither sees nor is seen."""
    q = RowRule(*(x[..., :, None] for x in rule_q))  # [B, Sq, 1]
    k = RowRule(*(x[..., None, :] for x in rule_k))  # [B, 1, Sk]
    return sees(q, k) & (k.example >= 0)  # an equal example of the query is no padding either


def pack_rule(rule: RowRule, block: int, padding: int) -> jax.Array:
    """int32 [B, 4, S padded to whole blocks]: the fields of [B, S] in their order, the example of padding `padding`."""
    rule = rule._replace(example=jnp.where(rule.example < 0, padding, rule.example))
    pad = ((0, 0), (0, -rule.order.shape[1] % block))
    fills = [padding if field == EXAMPLE else 0 for field in range(4)]
    fields = [jnp.pad(x.astype(jnp.int32), pad, constant_values=fill) for x, fill in zip(rule, fills, strict=True)]
    return jnp.stack(fields, axis=1)


class Extremes(NamedTuple):
    """Least and greatest fields int32 of the tokens of a block, padding left out, and bool: is there no padding?"""

    low: RowRule
    high: RowRule
    filled: jax.Array


def block_extremes(packed: jax.Array, block: int) -> Extremes:
    """Of every block [B, n] of packed rules [B, 4, n * block]; a block of padding alone has low > high."""
    rule = RowRule(*packed.reshape(*packed.shape[:2], -1, block).swapaxes(0, 1))  # [B, n, block] each
    real = rule.example >= 0
    limits = jnp.iinfo(jnp.int32)
    low = RowRule(*(jnp.where(real, x, limits.max).min(-1) for x in rule))
    high = RowRule(*(jnp.where(real, x, limits.min).max(-1) for x in rule))
    return Extremes(low, high, real.all(-1))


def block_meets(q: Extremes, k: Extremes) -> tuple[jax.Array, jax.Array]:
    """For blocks [B, n] of queries and [B, m] of keys, bool [B, n, m] twice: might a query see a key, and does every
    query see every key?

    The first is never wrong when it says no. It may say yes where nobody sees anybody, which costs time alone.
    """
    q = jax.tree.map(lambda x: x[:, :, None], q)
    k = jax.tree.map(lambda x: x[:, None, :], k)
    some = (q.low.example <= k.high.example) & (k.low.example <= q.high.example)
    some &= q.low.segment <= k.high.segment
    some &= (k.low.order <= q.high.order) | ((q.high.vision > 0) & (k.high.vision > 0))
    whole = (q.low.example == k.high.example) & (k.low.example == q.high.example) & q.filled & k.filled
    whole &= q.high.segment <= k.low.segment
    whole &= (k.high.order <= q.low.order) | ((q.low.vision > 0) & (k.low.vision > 0))
    return some, whole
