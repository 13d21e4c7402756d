"""Attention over packed rows without an S x S array: the front of the Pallas TPU kernels.

Which query sees which key is known before the first layer. `row_plan` asks it of whole blocks, once per forward, and
lists the pairs of blocks in which somebody may see somebody; the kernels walk those lists with a grid of exactly their
length. The future, other examples and padding cost nothing, and no other packing needs another compilation.

Logits are [key, query], so that maxima and sums run over sublanes and the softmax statistics are rows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.attention.rows_tpu_kernels import (
    FIRST,
    FLAG_BITS,
    LAST,
    MASKED,
    WHOLE,
    RowShapes,
    address_bits,
    forward,
    key_gradients,
    query_gradients,
)
from sttts_jax.ops.remat import attention_result

_DTYPES = (jnp.float32, jnp.bfloat16)
_HIGHEST = 2**31 - 1
# Below this many heads a step of the grid is too short for what it costs to begin one.
_STEP_HEADS = 4


@struct.dataclass
class RowPlan:
    """Which blocks of queries and keys of a batch meet.

    queries    int32 [B, 4, n * query_block]   example (-1: padding), segment, order and reach of every query, n blocks
    keys       int32 [B, 4, m * key_block]     the same of the keys, padding -2
    by_query   int32 [B * n * m]               pairs in use first, each query block's side by side (see `pair_words`)
    by_key     int32 [B * n * m]               the same pairs, each key block's side by side
    lengths    int32 [1, 2]                    how many words of the two lists are in use
    tokens     Sq and Sk of the rules
    query_block, key_block   tokens of a block
    """

    queries: jax.Array
    keys: jax.Array
    by_query: jax.Array
    by_key: jax.Array
    lengths: jax.Array
    tokens: tuple[int, int] = struct.field(pytree_node=False)
    query_block: int = struct.field(pytree_node=False)
    key_block: int = struct.field(pytree_node=False)


def row_plan(rule_q: RowRule, rule_k: RowRule, block: int = 512, key_block: int | None = None) -> RowPlan:
    """The plan of rows in which `mask_rows(rule_q, rule_k)` says who sees whom.

    Rules [B, Sq] and [B, Sk], of any lengths; negative examples are padding on both sides. `block` queries and
    `key_block` keys (None: as many) make a block, both multiples of 128; shorter rows get shorter blocks. A pair of
    blocks is listed if the smallest and largest example, segment and order in them leave it possible that a query sees
    a key, so an unordered row costs time and never exactness.
    """
    for name, rule in (("rule_q", rule_q), ("rule_k", rule_k)):
        if rule.order.ndim != 2 or any(field.shape != rule.order.shape for field in rule):
            raise ValueError(f"Every field of {name} must have one shape [B, S]; got {[x.shape for x in rule]}.")
    if rule_q.order.shape[0] != rule_k.order.shape[0]:
        raise ValueError(f"The rules have {rule_q.order.shape[0]} and {rule_k.order.shape[0]} rows; they must agree.")
    sizes = [block, block if key_block is None else key_block]
    if any(size < 128 or size % 128 for size in sizes):
        raise ValueError(f"The blocks are {sizes[0]} and {sizes[1]}; the row kernel wants multiples of 128 tokens.")
    (rows, queries), keys = rule_q.order.shape, rule_k.order.shape[1]
    if not rows or not queries or not keys:
        raise ValueError(f"The rules are {rule_q.order.shape} and {rule_k.order.shape}; neither may be empty.")
    query_block, key_block = (min(n, -(-s // 128) * 128) for n, s in zip(sizes, (queries, keys), strict=True))
    fields_q, fields_k = _fields(rule_q, query_block, -1), _fields(rule_k, key_block, -2)
    some, whole = _meetings(fields_q, query_block, fields_k, key_block)
    by_query, length_q = pair_words(some, whole)
    by_key, length_k = pair_words(some.swapaxes(1, 2), whole.swapaxes(1, 2))
    lengths = jnp.stack([length_q, length_k])[None]
    return RowPlan(fields_q, fields_k, by_query, by_key, lengths, (queries, keys), query_block, key_block)


def _fields(rule: RowRule, block: int, padding: int) -> jax.Array:
    """int32 [B, 4, whole blocks]; reach is the last order that a vision token may see of another one."""
    example = jnp.where(rule.example < 0, padding, rule.example)
    reach = jnp.where(rule.vision, _HIGHEST, -_HIGHEST)
    pad = ((0, 0), (0, -example.shape[1] % block))
    fields = zip((example, rule.segment, rule.order, reach), (padding, 0, 0, 0), strict=True)
    return jnp.stack([jnp.pad(x.astype(jnp.int32), pad, constant_values=fill) for x, fill in fields], axis=1)


def _meetings(fields_q: jax.Array, query_block: int, fields_k: jax.Array, key_block: int) -> tuple[jax.Array, ...]:
    """For every pair of blocks, bool [B, n, m]: might a query see a key, and does every query see every key?"""
    low_q, high_q, full_q = (x[..., :, None] for x in _extremes(fields_q, query_block))
    low_k, high_k, full_k = (x[..., None, :] for x in _extremes(fields_k, key_block))
    example, segment, order, reach = range(4)
    some = (low_q[example] <= high_k[example]) & (low_k[example] <= high_q[example])
    some &= low_q[segment] <= high_k[segment]
    some &= low_k[order] <= jnp.maximum(high_q[order], jnp.minimum(high_q[reach], high_k[reach]))
    whole = full_q[0] & full_k[0] & (jnp.minimum(low_q, low_k)[example] == jnp.maximum(high_q, high_k)[example])
    whole &= high_q[segment] <= low_k[segment]
    whole &= high_k[order] <= jnp.maximum(low_q[order], jnp.minimum(low_q[reach], low_k[reach]))
    return some, whole


def _extremes(fields: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Smallest and largest of every field [4, B, n] over the tokens of a block, and [1, B, n] has it no padding?"""
    fields = fields.swapaxes(0, 1).reshape(4, fields.shape[0], -1, block)
    real = fields[:1] >= 0
    low, high = (jnp.where(real, fields, fill) for fill in (_HIGHEST, -_HIGHEST))
    return low.min(axis=-1), high.max(axis=-1), real.all(axis=-1)


def pair_words(some: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The list of the pairs in `some` [B, own blocks, other blocks], own by own, and how many words of it are in use.

    A word holds the row, the own and the other block, and the flags FIRST and LAST of its own block, WHOLE if every
    query of the pair sees every key, MASKED if not. A block that meets none gets one word without the latter two,
    because its result must be written, too.
    """
    rows, owns, others = some.shape
    own_bits, other_bits = address_bits(owns, others)
    if (rows - 1).bit_length() + own_bits + other_bits + FLAG_BITS > 31:
        raise ValueError(f"{rows} rows of {owns} x {others} blocks are too many for one call; use larger blocks.")
    listed = some | (~some.any(axis=2, keepdims=True) & (jnp.arange(others) == 0))
    rank = jnp.cumsum(listed, axis=2, dtype=jnp.int32)
    flags = jnp.where(rank == 1, FIRST, 0) | jnp.where(rank == rank[..., -1:], LAST, 0)
    flags |= jnp.where(some, jnp.where(whole, WHOLE, MASKED), 0)
    row, own, other = (jax.lax.broadcasted_iota(jnp.int32, some.shape, axis) for axis in range(3))
    words = ((((row << own_bits) | own) << other_bits) | other) << FLAG_BITS | flags
    (order,) = jnp.nonzero(listed.reshape(-1), size=listed.size, fill_value=0)
    return words.reshape(-1)[order], jnp.sum(listed, dtype=jnp.int32)


def row_stream_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: RowPlan,
    *,
    head_groups: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Grouped-query attention over packed rows under the plan's rules, on TPU; exact, like `attend_rows`.

    q [B, Sq, H, d], k and v [B, Sk, Hkv, d] with Hkv dividing H, all float32 or all bfloat16. Softmax in float32,
    result [B, Sq, H, d] in q.dtype; padding, and queries that see no key, give exact zeros and get zero gradients,
    whatever padding holds.

    `head_groups` divides the key heads: one after the other, or one for each core of a chip (None: as many as leave 4
    query heads a step). `interpret` runs the kernels on any platform, slowly. The kernels know no mesh: with several
    devices call this, and `row_plan`, inside `jax.shard_map`.
    """
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "Row attention wants q [B, S, H, d] and k, v [B, S2, Hkv, d] with Hkv dividing H; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"Row attention wants all float32 or all bfloat16; got {q.dtype}, {k.dtype}, {v.dtype}.")
    planned = [(plan.queries.shape[0], n) for n in plan.tokens]
    if planned != [q.shape[:2], k.shape[:2]]:
        raise ValueError(f"The plan was made for rows {planned[0]} and {planned[1]}, not for {q.shape} and {k.shape}.")
    (_, queries, heads, width), kv_heads = q.shape, k.shape[2]
    if head_groups is None:
        wanted = min(kv_heads, -(-_STEP_HEADS * kv_heads // heads))
        head_groups = kv_heads // next(n for n in range(wanted, kv_heads + 1) if kv_heads % n == 0)
    if head_groups < 1 or kv_heads % head_groups:
        raise ValueError(f"head_groups={head_groups} does not divide {kv_heads} key heads.")

    # The last block may hang over the end of a row, but a block larger than the array may not be.
    q, k, v = (_heads_first(x, size) for x, size in zip((q, k, v), _sizes(plan), strict=True))
    blocks = (plan.query_block, plan.key_block)
    shapes = RowShapes(
        *(q.shape[0], q.shape[2], k.shape[2], heads, kv_heads, width), head_groups, *blocks, interpret=interpret
    )
    return _attend(q, k, v, plan, shapes).swapaxes(1, 2)[:, :queries]


def _sizes(plan: RowPlan) -> tuple[int, int, int]:
    return plan.query_block, plan.key_block, plan.key_block


def _heads_first(x: jax.Array, least: int) -> jax.Array:
    """[B, S, H, d] -> [B, H, S, d], with at least `least` tokens."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, max(least - x.shape[1], 0)), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: RowPlan, shapes: RowShapes) -> jax.Array:
    return _attend_fwd(q, k, v, plan, shapes)[0]


def _attend_fwd(q, k, v, plan, shapes):
    results = forward(plan.lengths[0, 0], plan.by_query, plan.queries, plan.keys, q, k, v, shapes)
    out, lse = map(attention_result, results)
    return out, (q, k, v, plan, out, lse)


def _attend_bwd(shapes, saved, g):
    q, k, v, plan, out, lse = saved
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), axis=-1)
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, lse.shape[-1] - delta.shape[-1])))
    delta = jnp.where(plan.queries[:, :1] >= 0, delta, 0.0).reshape(lse.shape)
    inputs = (plan.queries, plan.keys, q, k, v, g, lse, delta, shapes)
    dq = query_gradients(plan.lengths[0, 0], plan.by_query, *inputs)
    return dq, *key_gradients(plan.lengths[0, 1], plan.by_key, *inputs), None


_attend.defvjp(_attend_fwd, _attend_bwd)
