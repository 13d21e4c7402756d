"""The Pallas TPU kernels of `frames_tpu`: forward, and one for all gradients.

One step of the grid is one pair of blocks and one group of heads. The pairs of an own block follow one another: what
belongs to it stays in VMEM, what belongs to the other block is fetched ahead by Pallas from the prefetched lists.
Logits are [key, query] throughout. Every pair is listed in both orders, so the backward kernel needs the own block's
gradients only: of its queries from the other keys, and of its keys and values from the other queries.
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
from sttts_jax.ops.attention.tpu_blocks import LANES, VMEM_BYTES, alive, column, dot

Lists = tuple[jax.Array, jax.Array, jax.Array]


class Shapes(NamedTuple):
    """What is static about a call: B, S, H, d, groups of heads, tokens of a block, mean tokens of a frame, flags."""

    rows: int
    length: int
    heads: int
    width: int
    groups: int
    block: int
    typical: float
    biased: bool
    interpret: bool

    @property
    def blocks(self) -> int:
        """Of a row, the last one padded."""
        return -(-self.length // self.block)

    @property
    def padded(self) -> int:
        """Tokens of a row, padded to whole blocks."""
        return self.blocks * self.block

    @property
    def group(self) -> int:
        """Heads of a step."""
        return self.heads // self.groups

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.width**-0.5


def forward(
    lists: Lists, ids: jax.Array, bias: jax.Array | None, qkv: jax.Array, shapes: Shapes
) -> tuple[jax.Array, jax.Array]:
    """Result [B, H, d, S] and log of the softmax sums, float32 [B, groups, H / groups, padded S].

    `lists` are count, own and other of the plan; ids int32 and bias float32 [B, 1, padded S]; qkv [B, 3, H, d, S].
    Queries without keys have a sum of "infinity", so that their weights vanish in the backward pass.
    """
    spec = _Specs(shapes)
    biases = [] if bias is None else [bias]
    rows = pltpu.VMEM((shapes.group, shapes.block), jnp.float32)  # maxima and sums of every query so far
    out, lse = _call(
        functools.partial(_forward_kernel, shapes=shapes),
        lists,
        [ids, ids, *biases, qkv, qkv, qkv],
        [
            *(spec.row("own"), spec.row("other"), *(spec.row("other") for _ in biases)),
            *(spec.part("own", 0), spec.part("other", 1), spec.part("other", 2)),
        ],
        [jax.ShapeDtypeStruct(qkv.shape[:1] + qkv.shape[2:], qkv.dtype), spec.statistics_shape],
        [spec.heads("own"), spec.statistics("own")],
        [rows, rows, spec.sums()],
        _cost(shapes, qkv.dtype, products=2, maps=1, own=2, other=2),
        "stream_attention",
        shapes,
    )
    return out, lse


def backward(
    lists: Lists,
    ids: jax.Array,
    bias: jax.Array | None,
    qkv: jax.Array,
    g: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    shapes: Shapes,
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients of qkv and bias; arguments as in `forward`, g and delta = sum of result * g like its two results."""
    spec = _Specs(shapes)
    biases = [] if bias is None else [bias]
    sides = ("own", "other")
    grads, *rest = _call(
        functools.partial(_backward_kernel, shapes=shapes),
        lists,
        [x for x in (ids, *biases, qkv, g, lse, delta) for _ in sides],
        [
            *map(spec.row, sides),
            *(spec.row(side) for _ in biases for side in sides),
            *map(spec.parts, sides),
            *map(spec.heads, sides),
            *(spec.statistics(side) for _ in (lse, delta) for side in sides),
        ],
        [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), *(spec.bias_shape for _ in biases)],
        [spec.parts("own"), *(spec.bias() for _ in biases)],
        [spec.sums(3), *(pltpu.VMEM((shapes.block, shapes.block), jnp.float32) for _ in biases)],
        _cost(shapes, qkv.dtype, products=7, maps=2, own=7, other=4),
        "stream_attention_grad",
        shapes,
    )
    return grads, rest[0].sum(axis=1) if rest else None


class _Specs:
    """Where the blocks of a step lie, for the own and for the other block of the pair."""

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        self.statistics_shape = self._floats(shapes.group)
        self.bias_shape = self._floats(1)

    def _floats(self, number: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.shapes.rows, self.shapes.groups, number, self.shapes.padded), jnp.float32)

    def sums(self, *parts: int) -> Any:
        return pltpu.VMEM((*parts, *self._head_block()), jnp.float32)

    def row(self, side: str) -> pl.BlockSpec:
        return self._spec(side, (None, 1, self.shapes.block), lambda row, _, at: (row, 0, at))

    def heads(self, side: str) -> pl.BlockSpec:
        return self._spec(side, (None, *self._head_block()), lambda row, head, at: (row, head, 0, at))

    def part(self, side: str, part: int) -> pl.BlockSpec:
        return self._spec(side, (None, None, *self._head_block()), lambda row, head, at: (row, part, head, 0, at))

    def parts(self, side: str) -> pl.BlockSpec:
        return self._spec(side, (None, 3, *self._head_block()), lambda row, head, at: (row, 0, head, 0, at))

    def statistics(self, side: str) -> pl.BlockSpec:
        shape = (None, None, self.shapes.group, self.shapes.block)
        return self._spec(side, shape, lambda row, head, at: (row, head, 0, at))

    def bias(self) -> pl.BlockSpec:
        return self._spec("own", (None, None, 1, self.shapes.block), lambda row, head, at: (row, head, 0, at))

    def _head_block(self) -> tuple[int, int, int]:
        return self.shapes.group, self.shapes.width, self.shapes.block

    def _spec(self, side: str, shape: tuple, place: Callable[..., tuple]) -> pl.BlockSpec:
        blocks = self.shapes.blocks

        def index(head, pair, own, other):
            block = (own if side == "own" else other)[pair]  # counted over the whole batch
            return place(jax.lax.div(block, blocks), head, jax.lax.rem(block, blocks))

        return pl.BlockSpec(shape, index)


def _call(
    kernel: Callable[..., None],
    lists: Lists,
    inputs: Sequence[jax.Array],
    in_specs: Sequence[pl.BlockSpec],
    out_shape: Sequence[jax.ShapeDtypeStruct],
    out_specs: Sequence[pl.BlockSpec],
    scratch: Sequence[Any],
    cost: pl.CostEstimate,
    name: str,
    shapes: Shapes,
) -> Sequence[jax.Array]:
    count, own, other = lists
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(shapes.groups, count[0]),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch,
    )
    # Groups of heads may go to different cores; pairs may not, because an own block sums over those of its own.
    params = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES)
    call = pl.pallas_call(
        kernel,
        grid_spec=grid,
        out_shape=out_shape,
        compiler_params=params,
        cost_estimate=cost,
        interpret=shapes.interpret,
        name=name,
    )
    return call(own, other, *inputs)


def _cost(shapes: Shapes, dtype: Any, products: int, maps: int, own: int, other: int) -> pl.CostEstimate:
    """Work of the blocks that are computed if all frames are alike; the head takes whole lanes of the matrix unit."""
    blocks, block = shapes.rows * shapes.blocks, shapes.block
    pairs = blocks * min(shapes.blocks, shapes.typical / block + 2)
    lanes = round_up(shapes.width, LANES)
    area = pairs * block * block * shapes.heads
    tokens = block * shapes.heads * shapes.width * jnp.dtype(dtype).itemsize
    return pl.CostEstimate(
        flops=round(2 * products * area * lanes),
        transcendentals=round(maps * area),
        bytes_accessed=round(tokens * (own * blocks + other * pairs)),
    )


def _ends(own: Any) -> tuple[jax.Array, jax.Array]:
    """Is this the first pair of its own block, and is it the last?"""
    pair = pl.program_id(1)
    first = (pair == 0) | (own[jnp.maximum(pair - 1, 0)] != own[pair])
    # The list is longer than the grid by at least one, so that there is a next one to look at.
    last = (pair == pl.num_programs(1) - 1) | (own[pair + 1] != own[pair])
    return first, last


def _offsets(query_ids: jax.Array, key_ids: jax.Array, bias: Any) -> jax.Array:
    """What all heads add to their logits, [key, query]: the bias where the frames agree, else nearly -infinity."""
    keys = column(key_ids)  # [key, 1]
    seen = (keys == query_ids) & (keys >= 0)
    return jnp.where(seen, 0.0 if bias is None else column(bias[...]), -FAR)


def _forward_kernel(own, other, query_ids, key_ids, *refs, shapes: Shapes) -> None:
    bias, q, k, v, out, lse, top, total, sums = refs if shapes.biased else (None, *refs)
    first, last = _ends(own)

    @pl.when(first)
    def _():
        top[...] = jnp.full_like(top, -FAR)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    offsets = _offsets(query_ids[...], key_ids[...], bias)  # [key, query]
    for h in range(shapes.group):
        at = slice(h, h + 1)
        logits = dot(alive(k[h], key_ids[...]), q[h], (0, 0)) * shapes.scale + offsets  # [key, query]
        old = top[at]
        new = jnp.maximum(old, jnp.max(logits, axis=0, keepdims=True))  # [1, query]
        weights = jnp.exp(logits - new)  # [key, query]
        # What was summed so far was measured from the old maximum.
        shrink = jnp.exp(old - new)  # [1, query]
        top[at] = new
        total[at] = total[at] * shrink + jnp.sum(weights, axis=0, keepdims=True)
        # [d, query]
        sums[h] = sums[h] * shrink + dot(alive(v[h], key_ids[...]), weights.astype(v.dtype), (1, 0))

    @pl.when(last)
    def _():
        visible = top[...] > -NEAR  # [heads of the group, query]
        share = jnp.where(visible, 1.0 / total[...], 0.0)
        lse[...] = jnp.where(visible, top[...] + jnp.log(total[...]), FAR)
        for h in range(shapes.group):
            out[h] = alive(sums[h] * share[h : h + 1], query_ids[...]).astype(out.dtype)


def _backward_kernel(own, other, *refs, shapes: Shapes) -> None:
    """Own and other references alternate: ids, bias, qkv, g, lse, delta; then the gradients and their sums."""
    (ids, ids_o), refs = refs[:2], refs[2:]
    bias = bias_o = dbias = slopes = None
    if shapes.biased:
        (bias, bias_o), refs = refs[:2], refs[2:]
        qkv, qkv_o, g, g_o, lse, lse_o, delta, delta_o, grads, dbias, sums, slopes = refs
    else:
        qkv, qkv_o, g, g_o, lse, lse_o, delta, delta_o, grads, sums = refs
    first, last = _ends(own)

    @pl.when(first)
    def _():
        sums[...] = jnp.zeros_like(sums)
        if slopes is not None:
            slopes[...] = jnp.zeros_like(slopes)

    def slope(keys, values, queries, g, offsets, lse, delta):
        # [d, tokens], statistics [1, query] -> weights and gradients of logits before their scale, [key, query]
        weights = jnp.exp(dot(keys, queries, (0, 0)) * shapes.scale + offsets - lse)
        return weights, weights * (dot(values, g, (0, 0)) - delta)

    from_other = _offsets(ids[...], ids_o[...], bias_o)
    to_other = _offsets(ids_o[...], ids[...], bias)
    for h in range(shapes.group):
        at = slice(h, h + 1)
        # The pair both ways: own queries on other keys give dq, other queries on own keys give dk and dv.
        q_o, k_o, v_o, dout_o = (alive(x, ids_o[...]) for x in (qkv_o[0, h], qkv_o[1, h], qkv_o[2, h], g_o[h]))
        _, dlogits = slope(k_o, v_o, qkv[0, h], g[h], from_other, lse[at], delta[at])
        sums[0, h] += dot(k_o, dlogits.astype(qkv.dtype), (1, 0))
        weights, dlogits = slope(qkv[1, h], qkv[2, h], q_o, dout_o, to_other, lse_o[at], delta_o[at])
        sums[1, h] += dot(q_o, dlogits.astype(qkv.dtype), (1, 1))
        sums[2, h] += dot(dout_o, weights.astype(qkv.dtype), (1, 1))
        if slopes is not None:
            slopes[...] += dlogits  # [key, query]: over the queries it is summed once, at the end

    @pl.when(last)
    def _():
        for h in range(shapes.group):
            for part, scale in enumerate((shapes.scale, shapes.scale, 1.0)):
                grads[part, h] = alive(sums[part, h] * scale, ids[...]).astype(grads.dtype)
        if dbias is not None and slopes is not None:
            dbias[...] = alive(jnp.sum(slopes[...], axis=1)[None], ids[...])
