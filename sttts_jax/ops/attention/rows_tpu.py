"""Attention over packed rows without an S x S array: the front of the Pallas TPU kernels.

Which query sees which key is known before the first layer. `plan_rows_tpu` asks it of whole blocks, once per forward,
and lists the pairs of blocks in which somebody may see somebody; the kernels walk those lists with a grid of exactly
their length. The future, other examples and padding cost nothing, and no other packing needs another compilation.

Logits are [key, query], so that maxima and sums run over sublanes and the softmax statistics are rows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.pallas_softmax import check_dtypes
from sttts_jax.ops.attention.round_up import round_up
from sttts_jax.ops.attention.row_rule import (
    EXAMPLE,
    NO_KEY,
    NO_QUERY,
    RowRule,
    block_extremes,
    block_meets,
    pack_rule,
)
from sttts_jax.ops.attention.row_shapes import Planned, check_heads, check_rules
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

# Below this many heads a step of the grid is too short for what it costs to begin one.
_STEP_HEADS = 4


@struct.dataclass
class TpuRowsPlan:
    """Which blocks of queries and keys of a batch meet.

    queries    int32 [B, 4, n * query_block]   the rule of every query, n blocks (see `pack_rule`)
    keys       int32 [B, 4, m * key_block]     the same of the keys
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

    @property
    def planned(self) -> Planned:
        """The rows that `attend_rows_tpu` takes with this plan."""
        queries, keys = self.tokens
        return (self.queries.shape[0], queries), (self.keys.shape[0], keys)


def plan_rows_tpu(rule_q: RowRule, rule_k: RowRule, block: int = 512, key_block: int | None = None) -> TpuRowsPlan:
    """The plan of rows in which `mask_rows(rule_q, rule_k)` says who sees whom.

    Rules [B, Sq] and [B, Sk], of any lengths; negative examples are padding on both sides. `block` queries and
    `key_block` keys (None: as many) make a block, both multiples of 128; shorter rows get shorter blocks. A pair of
    blocks is listed if the smallest and largest example, segment and order in them leave it possible that a query sees
    a key, so an unordered row costs time and never exactness.
    """
    check_rules(rule_q, rule_k)
    sizes = [block, block if key_block is None else key_block]
    if any(size < 128 or size % 128 for size in sizes):
        raise ValueError(f"The blocks are {sizes[0]} and {sizes[1]}; the row kernel wants multiples of 128 tokens.")
    queries, keys = rule_q.order.shape[1], rule_k.order.shape[1]
    query_block, key_block = (min(n, round_up(s, 128)) for n, s in zip(sizes, (queries, keys), strict=True))
    fields_q, fields_k = pack_rule(rule_q, query_block, NO_QUERY), pack_rule(rule_k, key_block, NO_KEY)
    some, whole = block_meets(block_extremes(fields_q, query_block), block_extremes(fields_k, key_block))  # [B, n, m]
    by_query, length_q = pair_words(some, whole)
    by_key, length_k = pair_words(some.swapaxes(1, 2), whole.swapaxes(1, 2))
    lengths = jnp.stack([length_q, length_k])[None]
    return TpuRowsPlan(fields_q, fields_k, by_query, by_key, lengths, (queries, keys), query_block, key_block)


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
    listed = some | (~some.any(axis=2, keepdims=True) & (jnp.arange(others) == 0))  # [B, own, other]
    rank = jnp.cumsum(listed, axis=2, dtype=jnp.int32)  # 1, 2 .. along the pairs of an own block
    flags = jnp.where(rank == 1, FIRST, 0) | jnp.where(rank == rank[..., -1:], LAST, 0)
    flags |= jnp.where(some, jnp.where(whole, WHOLE, MASKED), 0)
    row, own, other = (jax.lax.broadcasted_iota(jnp.int32, some.shape, axis) for axis in range(3))
    # Never negative, because 31 bits are enough (checked above): shifts to the right bring no ones in.
    words = ((((row << own_bits) | own) << other_bits) | other) << FLAG_BITS | flags
    # The order of memory is the order of the list: rows, then own blocks, then other ones.
    (order,) = jnp.nonzero(listed.reshape(-1), size=listed.size, fill_value=0)
    return words.reshape(-1)[order], jnp.sum(listed, dtype=jnp.int32)


def attend_rows_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    plan: TpuRowsPlan,
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
    devices call this, and `plan_rows_tpu`, inside `jax.shard_map`.
    """
    check_heads(q, k, v, plan.planned)
    check_dtypes("Row attention on TPU", q, k, v)
    (_, queries, heads, width), kv_heads = q.shape, k.shape[2]
    # The fewest key heads a step, dividing all of them, that bring as many query heads as a step should have.
    if head_groups is None:
        wanted = min(kv_heads, -(-_STEP_HEADS * kv_heads // heads))
        head_groups = kv_heads // next(n for n in range(wanted, kv_heads + 1) if kv_heads % n == 0)
    if head_groups < 1 or kv_heads % head_groups:
        raise ValueError(f"head_groups={head_groups} does not divide {kv_heads} key heads.")

    # The last block may hang over the end of a row, but a block larger than the array may not be.
    q, k, v = (_heads_first(x, size) for x, size in zip((q, k, v), _sizes(plan), strict=True))  # [B, heads, tokens, d]
    blocks = (plan.query_block, plan.key_block)
    shapes = RowShapes(
        *(q.shape[0], q.shape[2], k.shape[2], heads, kv_heads, width), head_groups, *blocks, interpret=interpret
    )
    return _attend(q, k, v, plan, shapes).swapaxes(1, 2)[:, :queries]


def _sizes(plan: TpuRowsPlan) -> tuple[int, int, int]:
    return plan.query_block, plan.key_block, plan.key_block


def _heads_first(x: jax.Array, least: int) -> jax.Array:
    """[B, S, H, d] -> [B, H, S, d], with at least `least` tokens."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, max(least - x.shape[1], 0)), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: TpuRowsPlan, shapes: RowShapes) -> jax.Array:
    return _attend_fwd(q, k, v, plan, shapes)[0]


def _attend_fwd(q, k, v, plan, shapes):
    results = forward(plan.lengths[0, 0], plan.by_query, plan.queries, plan.keys, q, k, v, shapes)
    out, lse = map(attention_result, results)
    return out, (q, k, v, plan, out, lse)


def _attend_bwd(shapes, saved, g):
    q, k, v, plan, out, lse = saved
    # The mean of the weights' gradients under the weights, from the result alone: [B, H, Sq], then as lse.
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), axis=-1)
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, lse.shape[-1] - delta.shape[-1])))
    delta = jnp.where(plan.queries[:, EXAMPLE : EXAMPLE + 1] >= 0, delta, 0.0).reshape(lse.shape)
    inputs = (plan.queries, plan.keys, q, k, v, g, lse, delta, shapes)
    dq = query_gradients(plan.lengths[0, 0], plan.by_query, *inputs)
    return dq, *key_gradients(plan.lengths[0, 1], plan.by_key, *inputs), None


_attend.defvjp(_attend_fwd, _attend_bwd)
