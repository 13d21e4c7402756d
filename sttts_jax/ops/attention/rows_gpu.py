"""Flash attention over packed rows on GPUs, in Pallas for Triton.

`plan_rows_gpu` compares blocks of tokens by their extremes, once per forward, and lists for every block of queries the
blocks of keys that it may see. The kernels walk those lists: first pairs in which everyone sees everyone, which need no
mask at all, then the mixed ones. Nothing of size S x S exists; the lists are smaller than that by both block sizes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sttts_jax.ops.attention.pallas_softmax import FAR, NEAR, check_dtypes
from sttts_jax.ops.attention.row_rule import (
    EXAMPLE,
    NO_KEY,
    NO_QUERY,
    RowRule,
    block_extremes,
    block_meets,
    pack_rule,
    sees,
)
from sttts_jax.ops.attention.row_shapes import Planned, check_heads, check_rules
from sttts_jax.ops.remat import attention_result

_LOG2E = math.log2(math.e)
_WIDTHS = (16, 32, 64, 128)  # of heads, as Triton wants them
# For tiles of 128 x 64 and heads of 128: Triton spills next to nothing, and fetches list entry and tile ahead.
_WARPS, _STAGES = 8, 3
# Exact products of float32 use no matrix unit; larger tiles of them neither fit the registers nor compile quickly.
_FLOAT32_BLOCK = 32


@struct.dataclass
class BlockLists:
    """For each block of one side (I of them) the blocks of the other side (J) that it meets.

    blocks   int32 [B, I, J]   the blocks, full pairs first, then mixed ones; the rest is unused
    counts   int32 [B, I, 2]   full pairs, and all pairs
    order    int32 [B, I]      blocks with the most pairs first: the GPU starts the long ones first
    """

    blocks: jax.Array
    counts: jax.Array
    order: jax.Array


@struct.dataclass
class GpuRowsPlan:
    """Who sees whom, block by block. The rules are int32 [B, 4, S padded to blocks], see `pack_rule`.

    keys       blocks of keys of every block of queries
    queries    blocks of queries of every block of keys
    lengths    queries and keys of a row, S and S2
    """

    rule_q: jax.Array
    rule_k: jax.Array
    keys: BlockLists
    queries: BlockLists
    lengths: tuple[int, int] = struct.field(pytree_node=False)
    block_q: int = struct.field(pytree_node=False)
    block_k: int = struct.field(pytree_node=False)

    @property
    def planned(self) -> Planned:
        """The rows that `attend_rows_gpu` takes with this plan."""
        queries, keys = self.lengths
        return (self.rule_q.shape[0], queries), (self.rule_k.shape[0], keys)


def plan_rows_gpu(rule_q: RowRule, rule_k: RowRule, *, block_q: int = 128, block_k: int = 64) -> GpuRowsPlan:
    """The plan of rows under the rule of `mask_rows`; rules [B, S] and [B, S2], any lengths.

    Blocks are powers of two; the defaults suit bfloat16 and heads of 128. The test of two blocks is conservative: it
    looks at the least and the greatest example, segment and place of their tokens, so it may list a pair without a
    visible key, but never leaves one out.
    """
    for name, block in (("block_q", block_q), ("block_k", block_k)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"{name} is {block}; Triton wants a power of two, at least 16.")
    check_rules(rule_q, rule_k)
    lengths = rule_q.order.shape[1], rule_k.order.shape[1]
    packed_q, packed_k = pack_rule(rule_q, block_q, NO_QUERY), pack_rule(rule_k, block_k, NO_KEY)
    some, full = block_meets(block_extremes(packed_q, block_q), block_extremes(packed_k, block_k))  # [B, I, J]
    keys, queries = _lists(some, full), _lists(some.swapaxes(1, 2), full.swapaxes(1, 2))
    return GpuRowsPlan(packed_q, packed_k, keys, queries, lengths, block_q, block_k)


def _lists(some: jax.Array, full: jax.Array) -> BlockLists:
    number = some.shape[2]
    rank = jnp.where(full, 0, jnp.where(some, 1, 2)).astype(jnp.int32)  # [B, I, J]
    # One sort of rank and number in one integer: stable, and the numbers come out of it.
    blocks = jnp.sort(rank * number + jnp.arange(number, dtype=jnp.int32), axis=-1) % number
    counts = jnp.stack([full.sum(-1, dtype=jnp.int32), some.sum(-1, dtype=jnp.int32)], axis=-1)  # [B, I, 2]
    return BlockLists(blocks, counts, jnp.argsort(-counts[..., 1], axis=-1).astype(jnp.int32))


def attend_rows_gpu(
    q: jax.Array, k: jax.Array, v: jax.Array, plan: GpuRowsPlan, *, interpret: bool = False
) -> jax.Array:
    """Grouped-query attention over packed rows under the rule of the plan.

    q [B, S, H, d], k and v [B, S2, Hkv, d] float32 or bfloat16, Hkv dividing H (key head j serves query heads
    j*H/Hkv ...), d at most 128, padded to a power of two. Softmax in float32, result [B, S, H, d] in q.dtype; padding
    queries give exact zeros, padding gets zero gradients, whatever it holds. float32 is exact and slow, and wants a
    plan with blocks of at most 32: it is there for tests.

    `interpret` runs the kernels on any platform, slowly. The kernels know no mesh: with several devices call this
    inside `jax.shard_map`, over the batch or the heads.
    """
    check_heads(q, k, v, plan.planned)
    check_dtypes("Row attention on GPU", q, k, v)
    width = q.shape[-1]
    padded = next((size for size in _WIDTHS if size >= width), None)
    if padded is None:
        raise ValueError(f"Rows on GPU want a head_dim of at most {_WIDTHS[-1]}; got {width}, so take attention='xla'.")
    if q.dtype == jnp.float32 and not interpret and max(plan.block_q, plan.block_k) > _FLOAT32_BLOCK:
        raise ValueError(
            f"float32 rows on GPU want a plan with blocks of at most {_FLOAT32_BLOCK} tokens, not {plan.block_q} and "
            f"{plan.block_k}; make one, or compute in bfloat16."
        )
    if padded > width:
        q = q * jnp.asarray((padded / width) ** 0.5, q.dtype)  # the kernels divide by the root of what they see
        q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padded - width))) for x in (q, k, v))
    return _attend(q, k, v, plan, interpret)[..., :width]


class _Sizes(NamedTuple):
    """What is static about the kernels.

    block_q, block_k   tokens of the blocks
    group              query heads of a key head
    scale              of the logits, in base 2
    fits               there is a whole block of either, so that full pairs may exist
    """

    block_q: int
    block_k: int
    group: int
    scale: float
    fits: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, plan: GpuRowsPlan, interpret: bool) -> jax.Array:
    return _attend_fwd(q, k, v, plan, interpret)[0]


def _attend_fwd(q, k, v, plan, interpret):
    group = q.shape[2] // k.shape[2]
    one, shared = functools.partial(_heads, axis=2), functools.partial(_heads, axis=2, share=group)
    # The statistics fill whole blocks, so that nobody needs a mask to read them.
    statistics = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], plan.rule_q.shape[2]), jnp.float32)
    results = _call(
        _forward_kernel,
        plan,
        plan.keys,
        [(q, one(q)), (k, shared(k)), (v, shared(v))],
        [(q, one(q)), (statistics, _heads(statistics, axis=1))],
        group=group,
        heads=q.shape[2],
        interpret=interpret,
    )
    out, lse = map(attention_result, results)  # [B, S, H, d], [B, H, S padded to blocks]
    return out, (q, k, v, plan, out, lse)


def _attend_bwd(interpret, saved, g):
    q, k, v, plan, out, lse = saved
    group = q.shape[2] // k.shape[2]
    # The mean of the weights' gradients under the weights, from the result alone.
    delta = jnp.einsum("bshd,bshd->bhs", out, g, preferred_element_type=jnp.float32)  # [B, H, S]
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, lse.shape[2] - delta.shape[2])))  # [B, H, S padded to blocks]
    delta = jnp.where(plan.rule_q[:, None, EXAMPLE] >= 0, delta, 0)
    call = functools.partial(_call, group=group, interpret=interpret)

    one, shared = functools.partial(_heads, axis=2), functools.partial(_heads, axis=2, share=group)
    inputs = [(q, one(q)), (k, shared(k)), (v, shared(v)), (g, one(g))]
    inputs += [(x, _heads(x, axis=1)) for x in (lse, delta)]
    # [B, S, H, d]
    (dq,) = call(_dq_kernel, plan, plan.keys, inputs, [(q, one(q))], heads=q.shape[2])

    several = functools.partial(_heads, size=group)
    inputs = [(q, several(q, axis=2)), (k, one(k)), (v, one(v)), (g, several(g, axis=2))]
    inputs += [(x, several(x, axis=1)) for x in (lse, delta)]
    # [B, S2, Hkv, d] each: a program sums over the query heads of its key head, so that nothing is added up later.
    dk, dv = call(_dkv_kernel, plan, plan.queries, inputs, [(k, one(k)), (v, one(v))], heads=k.shape[2])
    return dq, dk, dv, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _heads(x: Any, axis: int, size: int | None = None, share: int = 1) -> pl.BlockSpec:
    """All tokens of one row and of one head of x, or of `size` heads; `share` programs in turn get the same ones."""
    shape = [None, *x.shape[1:]]
    shape[axis] = size

    def place(head, row, _):
        at = [row, *(0,) * (x.ndim - 1)]
        at[axis] = jax.lax.div(head, share)
        return tuple(at)

    return pl.BlockSpec(tuple(shape), place)


def _rows(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((None, *x.shape[1:]), lambda _, row, __: (row, *(0,) * (x.ndim - 1)))


def _call(
    kernel: Callable[..., None],
    plan: GpuRowsPlan,
    lists: BlockLists,
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[Any, pl.BlockSpec]],
    *,
    group: int,
    heads: int,
    interpret: bool,
) -> Sequence[jax.Array]:
    """One program for every block of `lists`, row and head; heads that share keys run side by side."""
    q = inputs[0][0]
    shared = [lists.order, lists.blocks, lists.counts, plan.rule_q, plan.rule_k]
    fits = plan.lengths[0] >= plan.block_q and plan.lengths[1] >= plan.block_k
    sizes = _Sizes(plan.block_q, plan.block_k, group, q.shape[-1] ** -0.5 * _LOG2E, fits)
    call = pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=(heads, *lists.order.shape),
        in_specs=[*map(_rows, shared), *(spec for _, spec in inputs)],
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1 if q.dtype == jnp.float32 else _STAGES),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )
    return call(*shared, *(x for x, _ in inputs))


def _walk(step: Callable[..., Any], lists: tuple[Any, Any], block: jax.Array, carry: Any, sizes: _Sizes) -> Any:
    """step(other block, is it mixed, carry) over the list of a block."""
    blocks, counts = lists
    full, some = counts[block, 0], counts[block, 1]
    if sizes.fits:
        carry = jax.lax.fori_loop(0, full, lambda i, x: step(blocks[block, i], False, x), carry)
    return jax.lax.fori_loop(full, some, lambda i, x: step(blocks[block, i], True, x), carry)


def _rule(packed: Any, at: Any, axis: int) -> RowRule:
    """The rule of some tokens, as [n, 1] (axis 0) or [1, n] (axis 1)."""
    return RowRule(*(jnp.expand_dims(packed[field, at], 1 - axis) for field in range(4)))


def _load(ref: Any, rule: RowRule | None) -> jax.Array:
    """Tokens [n, d]; with their rule [n, 1], zeros where there is none: padding or what lies beyond may be NaN."""
    return ref[...] if rule is None else plgpu.load(ref, mask=rule.example >= 0, other=0.0)


def _store(ref: Any, at: Any, value: jax.Array) -> None:
    inside = at.start + jnp.arange(at.size) < ref.shape[0]
    plgpu.store(ref.at[at, :], value.astype(ref.dtype), mask=inside[:, None])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return plgpu.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _forward_kernel(order, blocks, counts, rule_q, rule_k, q, k, v, out, lse, *, sizes: _Sizes) -> None:
    block = order[pl.program_id(2)]
    at = pl.ds(block * sizes.block_q, sizes.block_q)
    rule = _rule(rule_q, at, 0)
    query = _load(q.at[at, :], rule)  # [query, d]

    def step(other, mixed, carry):
        top, total, sums = carry  # [query], [query], [query, d]
        near = pl.ds(other * sizes.block_k, sizes.block_k)
        alive = _rule(rule_k, near, 0) if mixed else None
        logits = _dot(query, _load(k.at[near, :], alive).T) * sizes.scale  # [query, key], in base 2
        if mixed:
            logits = jnp.where(sees(rule, _rule(rule_k, near, 1)), logits, -FAR)
        new = jnp.maximum(top, jnp.max(logits, axis=1))  # [query]
        weights = jnp.exp2(logits - new[:, None])  # [query, key]
        # What was summed so far was measured from the old maximum.
        shrink = jnp.exp2(top - new)  # [query]
        value = _load(v.at[near, :], alive)  # [key, d]
        sums = sums * shrink[:, None] + _dot(weights.astype(value.dtype), value)
        return new, total * shrink + jnp.sum(weights, axis=1), sums

    zeros = jnp.zeros(sizes.block_q, jnp.float32)
    start = zeros - FAR, zeros, jnp.zeros(query.shape, jnp.float32)
    top, total, sums = _walk(step, (blocks, counts), block, start, sizes)
    visible = top > -NEAR
    total = jnp.where(visible, total, 1.0)
    _store(out, at, jnp.where(visible[:, None], sums / total[:, None], 0.0))
    # Queries without keys: a sum of "infinity", so that their weights vanish in the backward pass.
    lse[at] = jnp.where(visible, top + jnp.log2(total), FAR)


def _dq_kernel(order, blocks, counts, rule_q, rule_k, q, k, v, g, lse, delta, dq, *, sizes: _Sizes) -> None:
    block = order[pl.program_id(2)]
    at = pl.ds(block * sizes.block_q, sizes.block_q)
    rule = _rule(rule_q, at, 0)
    query, slope = _load(q.at[at, :], rule), _load(g.at[at, :], rule)  # [query, d]
    norm, mean = lse[at][:, None], delta[at][:, None]  # [query, 1]

    def step(other, mixed, total):
        near = pl.ds(other * sizes.block_k, sizes.block_k)
        alive = _rule(rule_k, near, 0) if mixed else None
        key = _load(k.at[near, :], alive)  # [key, d]
        logits = _dot(query, key.T) * sizes.scale  # [query, key], in base 2
        if mixed:
            logits = jnp.where(sees(rule, _rule(rule_k, near, 1)), logits, -FAR)
        value = _load(v.at[near, :], alive)  # [key, d]
        dlogits = jnp.exp2(logits - norm) * (_dot(slope, value.T) - mean)  # [query, key]
        return total + _dot(dlogits.astype(key.dtype), key)  # [query, d]

    total = _walk(step, (blocks, counts), block, jnp.zeros(query.shape, jnp.float32), sizes)  # [query, d]
    # The scale of the logits is in base 2, that of their gradients is not.
    _store(dq, at, total * (sizes.scale / _LOG2E))


def _dkv_kernel(order, blocks, counts, rule_q, rule_k, q, k, v, g, lse, delta, dk, dv, *, sizes: _Sizes) -> None:
    # Everything is [key, query] here, so that no matrix of weights is turned over.
    block = order[pl.program_id(2)]
    at = pl.ds(block * sizes.block_k, sizes.block_k)
    rule = _rule(rule_k, at, 0)
    key, value = _load(k.at[at, :], rule), _load(v.at[at, :], rule)  # [key, d]

    def step(head, other, mixed, carry):
        dkey, dvalue = carry
        near = pl.ds(other * sizes.block_q, sizes.block_q)
        alive = _rule(rule_q, near, 0) if mixed else None
        query, slope = _load(q.at[near, head, :], alive), _load(g.at[near, head, :], alive)  # [query, d]
        logits = _dot(key, query.T) * sizes.scale  # [key, query], in base 2
        if mixed:
            logits = jnp.where(sees(_rule(rule_q, near, 1), rule), logits, -FAR)
        weights = jnp.exp2(logits - lse[head, near][None, :])  # [key, query]
        dvalue += _dot(weights.astype(slope.dtype), slope)  # [key, d]
        dlogits = weights * (_dot(value, slope.T) - delta[head, near][None, :])  # [key, query]
        return dkey + _dot(dlogits.astype(query.dtype), query), dvalue  # [key, d]

    def one_head(head, carry):
        return _walk(functools.partial(step, head), (blocks, counts), block, carry, sizes)

    zeros = jnp.zeros(key.shape, jnp.float32)
    dkey, dvalue = jax.lax.fori_loop(0, sizes.group, one_head, (zeros, zeros))  # [key, d]
    _store(dk, at, dkey * (sizes.scale / _LOG2E))
    _store(dv, at, dvalue)
