"""The Pallas TPU kernels of `rows_tpu`: forward, gradients of the queries, gradients of keys and values.

One step of the grid is one pair of blocks and one group of key heads with all of their query heads. The pairs of an
own block follow one another: what belongs to it stays in VMEM, what belongs to the other block is fetched ahead by
Pallas from the prefetched list. The own block is one of queries, save for the gradients of keys and values.
Logits are [key, query] throughout.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sttts_jax.ops.attention.pallas_softmax import FAR, NEAR
from sttts_jax.ops.attention.round_up import round_up
from sttts_jax.ops.attention.row_rule import EXAMPLE, RowRule, sees
from sttts_jax.ops.attention.tpu_blocks import LANES, VMEM_BYTES, alive, column, dot

# Flags of a pair, the low bits of its word; above them the other block, the own block and the row.
FIRST, LAST, MASKED, WHOLE = 1, 2, 4, 8
FLAG_BITS = 4


def address_bits(owns: int, others: int) -> tuple[int, int]:
    """Bits of a word that number the own and the other block."""
    return (owns - 1).bit_length(), (others - 1).bit_length()


class RowShapes(NamedTuple):
    """What is static about a call: B, Sq, Sk, H, Hkv, d, groups of key heads, tokens of the blocks, interpret."""

    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    groups: int
    query_block: int
    key_block: int
    interpret: bool

    @property
    def query_blocks(self) -> int:
        """Blocks of queries of a row, the last one padded."""
        return -(-self.queries // self.query_block)

    @property
    def key_blocks(self) -> int:
        """Blocks of keys of a row, the last one padded."""
        return -(-self.keys // self.key_block)

    @property
    def group(self) -> int:
        """Query heads of a step."""
        return self.heads // self.groups

    @property
    def kv_group(self) -> int:
        """Key heads of a step."""
        return self.kv_heads // self.groups

    @property
    def share(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.width**-0.5


def forward(
    length: jax.Array,
    words: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    shapes: RowShapes,
) -> tuple[jax.Array, jax.Array]:
    """Result [B, H, Sq, d] and log of the softmax sums, float32 [B, groups, H / groups, padded Sq].

    `length`, `words` (by query), `queries` and `keys` are the plan's; q [B, H, Sq, d], k and v [B, Hkv, Sk, d].
    Queries without keys have a sum of "infinity", so that their weights vanish in the backward pass.
    """
    spec = _Specs(shapes, "query")
    rows = pltpu.VMEM((shapes.group, shapes.query_block), jnp.float32)
    padded = shapes.query_blocks * shapes.query_block
    statistics = jax.ShapeDtypeStruct((shapes.rows, shapes.groups, shapes.group, padded), jnp.float32)
    out, lse = _call(
        functools.partial(_forward_kernel, shapes=shapes),
        (length, words),
        [queries, keys, q, k, v],
        [spec.fields("query"), spec.fields("key"), spec.heads("query"), spec.heads("key"), spec.heads("key")],
        [jax.ShapeDtypeStruct(q.shape, q.dtype), statistics],
        [spec.heads("query"), spec.statistics()],
        [rows, rows, pltpu.VMEM((shapes.group, shapes.width, shapes.query_block), jnp.float32)],
        _cost(shapes, q.dtype, products=2, own=2 * shapes.heads, other=2 * shapes.kv_heads, side="query"),
        "row_attention",
        shapes,
    )
    return out, lse


def query_gradients(
    length: jax.Array,
    words: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    shapes: RowShapes,
) -> jax.Array:
    """Gradient of q; arguments as in `forward`, g and delta = sum of result * g like its two results."""
    spec = _Specs(shapes, "query")
    (grad,) = _call(
        functools.partial(_query_kernel, shapes=shapes),
        (length, words),
        [queries, keys, q, k, v, g, lse, delta],
        spec.backward(),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        [spec.heads("query")],
        [pltpu.VMEM((shapes.group, shapes.width, shapes.query_block), jnp.float32)],
        _cost(shapes, q.dtype, products=3, own=3 * shapes.heads, other=2 * shapes.kv_heads, side="query"),
        "row_attention_grad_q",
        shapes,
    )
    return grad


def key_gradients(
    length: jax.Array,
    words: jax.Array,
    queries: jax.Array,
    keys: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    shapes: RowShapes,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of k and v; arguments as in `query_gradients`, but `words` and their number by key."""
    spec = _Specs(shapes, "key")
    sums = pltpu.VMEM((shapes.kv_group, shapes.key_block, shapes.width), jnp.float32)
    dk, dv = _call(
        functools.partial(_key_kernel, shapes=shapes),
        (length, words),
        [queries, keys, q, k, v, g, lse, delta],
        spec.backward(),
        [jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        [spec.heads("key")] * 2,
        [sums, sums],
        _cost(shapes, q.dtype, products=4, own=4 * shapes.kv_heads, other=2 * shapes.heads, side="key"),
        "row_attention_grad_kv",
        shapes,
    )
    return dk, dv


class _Specs:
    """Where the blocks of a step lie if the own block is one of queries, or one of keys."""

    def __init__(self, shapes: RowShapes, own: str):
        self.shapes = shapes
        self.own = own

    def fields(self, side: str) -> pl.BlockSpec:
        return self._spec(side, (None, 4, self._block(side)), lambda row, _, at: (row, 0, at))

    def heads(self, side: str) -> pl.BlockSpec:
        group = self.shapes.group if side == "query" else self.shapes.kv_group
        shape = (None, group, self._block(side), self.shapes.width)
        return self._spec(side, shape, lambda row, head, at: (row, head, at, 0))

    def statistics(self) -> pl.BlockSpec:
        shape = (None, None, self.shapes.group, self.shapes.query_block)
        return self._spec("query", shape, lambda row, head, at: (row, head, 0, at))

    def backward(self) -> list[pl.BlockSpec]:
        """Of queries, keys, q, k, v, g, lse, delta."""
        heads = [self.heads(side) for side in ("query", "key", "key", "query")]
        return [self.fields("query"), self.fields("key"), *heads, self.statistics(), self.statistics()]

    def _block(self, side: str) -> int:
        return self.shapes.query_block if side == "query" else self.shapes.key_block

    def _spec(self, side: str, shape: tuple, place: Callable[..., tuple]) -> pl.BlockSpec:
        numbers = (self.shapes.query_blocks, self.shapes.key_blocks)
        own_bits, other_bits = address_bits(*(numbers if self.own == "query" else numbers[::-1]))

        def index(head, pair, words):
            address = words[pair] >> FLAG_BITS  # row, own block, other block, from the highest bits down
            own = (address >> other_bits) & ((1 << own_bits) - 1)
            other = address & ((1 << other_bits) - 1)
            return place(address >> (own_bits + other_bits), head, own if side == self.own else other)

        return pl.BlockSpec(shape, index)


def _call(
    kernel: Callable[..., None],
    pairs: tuple[jax.Array, jax.Array],
    inputs: Sequence[jax.Array],
    in_specs: Sequence[pl.BlockSpec],
    out_shape: Sequence[jax.ShapeDtypeStruct],
    out_specs: Sequence[pl.BlockSpec],
    scratch: Sequence[Any],
    cost: pl.CostEstimate,
    name: str,
    shapes: RowShapes,
) -> Sequence[jax.Array]:
    length, words = pairs
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(shapes.groups, length),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch,
    )
    # Groups of heads may go to different cores; pairs may not, because an own block sums over those of its own.
    call = pl.pallas_call(
        kernel,
        grid_spec=grid,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=cost,
        interpret=shapes.interpret,
        name=name,
    )
    return call(words, *inputs)


def _cost(shapes: RowShapes, dtype: Any, products: int, own: int, other: int, side: str) -> pl.CostEstimate:
    """Work of the blocks that are computed for one causal example a row; packed examples take less.

    `own` and `other` are the heads that are read and written, of tokens of the own block and of the other one.
    """
    before = max(shapes.keys - shapes.queries, 0)  # keys of a cache, which every query sees
    ends = (-(-(before + i * shapes.query_block) // shapes.key_block) for i in range(1, shapes.query_blocks + 1))
    pairs = shapes.rows * sum(min(end, shapes.key_blocks) for end in ends)
    area = pairs * shapes.query_block * shapes.key_block * shapes.heads
    tokens = [shapes.query_block, shapes.key_block][:: 1 if side == "query" else -1]
    blocks = shapes.rows * (shapes.query_blocks if side == "query" else shapes.key_blocks)
    lanes = round_up(shapes.width, LANES)
    return pl.CostEstimate(
        flops=2 * products * area * lanes,
        transcendentals=area,
        bytes_accessed=(own * tokens[0] * blocks + other * tokens[1] * pairs) * lanes * jnp.dtype(dtype).itemsize,
    )


def _when_seen(word: jax.Array, queries: Any, keys: Any, step: Callable[..., None]) -> None:
    """step(offsets, query_ids, key_ids) if the pair hides something, step(None, None, None) if it hides nothing.

    Offsets [key, query] are what all heads add to their logits: 0 where the query sees the key, else nearly -infinity.
    The ids, example or negative for padding, are a row and a column.
    """

    @pl.when((word & MASKED) != 0)
    def _():
        q = RowRule(*(queries[i : i + 1] for i in range(4)))  # [1, query]
        k = RowRule(*(column(keys[i : i + 1]) for i in range(4)))  # [key, 1]
        step(jnp.where(sees(q, k), 0.0, -FAR), q.example, k.example)

    @pl.when((word & WHOLE) != 0)
    def _():
        step(None, None, None)


def _ids(fields: Any) -> jax.Array:
    """[1, tokens]: examples, negative for padding."""
    return fields[EXAMPLE : EXAMPLE + 1]


def _logits(k: jax.Array, q: jax.Array, offsets: jax.Array | None, shapes: RowShapes) -> jax.Array:
    logits = dot(k, q, (1, 1)) * shapes.scale  # [key, query]
    return logits if offsets is None else logits + offsets


def _forward_kernel(words, queries, keys, q, k, v, out, lse, top, total, sums, *, shapes: RowShapes) -> None:
    word = words[pl.program_id(1)]

    @pl.when((word & FIRST) != 0)
    def _():
        top[...] = jnp.full_like(top, -FAR)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    def step(offsets, _, key_ids):
        for j in range(shapes.kv_group):
            k_j, v_j = alive(k[j], key_ids), alive(v[j], key_ids).T  # [key, d], [d, key]
            for h in range(j * shapes.share, (j + 1) * shapes.share):
                at = slice(h, h + 1)
                logits = _logits(k_j, q[h], offsets, shapes)
                old = top[at]
                new = jnp.maximum(old, jnp.max(logits, axis=0, keepdims=True))  # [1, query]
                weights = jnp.exp(logits - new)  # [key, query]
                # What was summed so far was measured from the old maximum.
                shrink = jnp.exp(old - new)  # [1, query]
                top[at] = new
                total[at] = total[at] * shrink + jnp.sum(weights, axis=0, keepdims=True)
                sums[h] = sums[h] * shrink + dot(v_j, weights.astype(v.dtype), (1, 0))  # [d, query]

    _when_seen(word, queries, keys, step)

    @pl.when((word & LAST) != 0)
    def _():
        visible = top[...] > -NEAR  # [heads of the group, query]
        share = jnp.where(visible, 1.0 / total[...], 0.0)
        lse[...] = jnp.where(visible, top[...] + jnp.log(total[...]), FAR)
        for h in range(shapes.group):
            out[h] = alive(sums[h] * share[h : h + 1], _ids(queries)).T.astype(out.dtype)


def _slopes(k, v, q, g, lse, delta, offsets, shapes: RowShapes) -> tuple[jax.Array, jax.Array]:
    """Softmax weights and the gradients of the logits before their scale, both [key, query] float32."""
    weights = jnp.exp(_logits(k, q, offsets, shapes) - lse)
    return weights, weights * (dot(v, g, (1, 1)) - delta)


def _query_kernel(words, queries, keys, q, k, v, g, lse, delta, dq, sums, *, shapes: RowShapes) -> None:
    word = words[pl.program_id(1)]

    @pl.when((word & FIRST) != 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    def step(offsets, _, key_ids):
        for j in range(shapes.kv_group):
            k_j, v_j = alive(k[j], key_ids), alive(v[j], key_ids)  # [key, d]
            turned = k_j.T  # [d, key], once for all query heads of the key head
            for h in range(j * shapes.share, (j + 1) * shapes.share):
                at = slice(h, h + 1)
                _, slopes = _slopes(k_j, v_j, q[h], g[h], lse[at], delta[at], offsets, shapes)
                sums[h] += dot(turned, slopes.astype(k.dtype), (1, 0))  # [d, query]

    _when_seen(word, queries, keys, step)

    @pl.when((word & LAST) != 0)
    def _():
        for h in range(shapes.group):
            dq[h] = alive(sums[h] * shapes.scale, _ids(queries)).T.astype(dq.dtype)


def _key_kernel(words, queries, keys, q, k, v, g, lse, delta, dk, dv, sums_k, sums_v, *, shapes: RowShapes) -> None:
    word = words[pl.program_id(1)]

    @pl.when((word & FIRST) != 0)
    def _():
        sums_k[...] = jnp.zeros_like(sums_k)
        sums_v[...] = jnp.zeros_like(sums_v)

    def step(offsets, query_ids, _):
        ids = None if query_ids is None else column(query_ids)  # [query, 1]
        for h in range(shapes.group):
            at, j = slice(h, h + 1), h // shapes.share
            q_h, g_h = alive(q[h], ids), alive(g[h], ids)  # [query, d]
            weights, slopes = _slopes(k[j], v[j], q_h, g_h, lse[at], delta[at], offsets, shapes)
            # The query heads of a key head add up here.
            sums_k[j] += dot(slopes.astype(q.dtype), q_h, (1, 0))  # [key, d]
            sums_v[j] += dot(weights.astype(q.dtype), g_h, (1, 0))

    _when_seen(word, queries, keys, step)

    @pl.when((word & LAST) != 0)
    def _():
        ids = column(_ids(keys))
        for j in range(shapes.kv_group):
            dk[j] = alive(sums_k[j] * shapes.scale, ids).astype(dk.dtype)
            dv[j] = alive(sums_v[j], ids).astype(dv.dtype)
