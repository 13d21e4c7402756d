"""The front door of attention: it checks, refuses what a kernel cannot honour, and calls the kernel.

Two shapes of attention exist in the model: inside frames, and over packed rows (`plan_rows`, `attend_rows`). Frames
come as slots of one size (`attend_frames`) or as a stream of tokens in which they follow one another (`plan_stream`,
`attend_stream`). Which kernel runs where:

    kernels   whole frames, and survivors                        rows of the language model
    xla       XLA on frames and on slots; every platform         XLA, queries in blocks
    cpu       XLA, frame by frame, in slices of the stream       as above
    gpu       cuDNN on frames and on slots, which skips padding  Pallas for Triton, pairs of blocks that meet
    tpu       Pallas on the stream, pairs of blocks that meet    Pallas, pairs of blocks that meet
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sttts_jax import dims
from sttts_jax.ops.frame_attention import frame_attention_xla, masked_softmax
from sttts_jax.ops.frame_attention_gpu import frame_attention_cudnn
from sttts_jax.ops.frame_loop import LoopPlan, loop_attention, loop_plan
from sttts_jax.ops.frame_stream import StreamPlan, stream_attention, stream_plan
from sttts_jax.ops.row_attention import RowRule, RulePlan, mask_rows, row_attention_xla
from sttts_jax.ops.row_attention_gpu import RowPlan as GpuRowPlan
from sttts_jax.ops.row_attention_gpu import row_attention_gpu, row_plan_gpu
from sttts_jax.ops.row_stream import RowPlan as TpuRowPlan
from sttts_jax.ops.row_stream import row_plan, row_stream_attention
from sttts_jax.sharding import on_shards, split_axes

__all__ = [
    "KERNELS",
    "Plan",
    "RowRule",
    "RowsPlan",
    "STREAM_KERNELS",
    "attend_frames",
    "attend_rows",
    "attend_stream",
    "choose_kernels",
    "mask_rows",
    "masked_softmax",
    "plan_rows",
    "plan_stream",
]

KERNELS = ("auto", "xla", "cpu", "gpu", "tpu")
STREAM_KERNELS = ("cpu", "tpu")
Plan = StreamPlan | LoopPlan
RowsPlan = RulePlan | GpuRowPlan | TpuRowPlan
# Patches of a frame from which a CPU goes frame by frame. Measured at SigLIP 2's width: slots are faster up to 144
# patches, the loop from 324 on (729: by a fifth), and 225 are even.
_WORTH_A_LOOP = 256


def choose_kernels(name: str, platform: str, dtype: Any, patches: int) -> str:
    """The kernels for devices of `platform` ("cpu", "gpu", "tpu"), those that a program is compiled for.

    `dtype` of the compute; `patches` of a frame. "auto" gives the platform's own, and "xla" where they do not apply:
    on GPUs in float32, and for small frames on CPUs. Raises ValueError for an unknown name, for kernels of another
    platform, and for "gpu" in float32.
    """
    if name not in KERNELS:
        raise ValueError(f"no attention kernels are called {name!r}; choose one of {', '.join(KERNELS)}")
    half = jnp.dtype(dtype).itemsize == 2
    usual = {"cpu": patches >= _WORTH_A_LOOP, "gpu": half, "tpu": True}
    if name == "auto":
        return platform if usual.get(platform) else "xla"
    if name not in ("xla", platform):
        raise ValueError(f"attention={name!r} does not run on {platform}; choose 'auto' or 'xla'")
    if name == "gpu" and not half:
        raise ValueError("attention='gpu' wants dtype bfloat16; choose that, or attention='xla'")
    return name


def plan_stream(
    segments: jax.Array, seen: jax.Array | None = None, *, frames: int, max_segment: int, kernels: str
) -> Plan:
    """What `attend_stream` needs to know of a batch of streams; once per forward.

    segments int32 [B, S]: the frame of each token, 0 .. frames - 1 in rising order, then any larger id for padding;
    `seen` bool [B, S]: False for tokens that do not exist (None: all do). No frame may stretch over more than
    `max_segment` tokens. `kernels` is "cpu" (`ops.frame_loop`) or "tpu" (`ops.frame_stream`).
    """
    make = {"cpu": loop_plan, "tpu": _stream_plan}.get(kernels)
    if make is None:
        raise ValueError(f"the {kernels!r} kernels take slots, not streams; use 'cpu' or 'tpu'")
    rows = PartitionSpec(split_axes(segments.shape[0], dims.ACT_BATCH))
    make = functools.partial(make, frames=frames, max_segment=max_segment)
    return on_shards(make, (rows, None if seen is None else rows), rows)(segments, seen)


def _stream_plan(segments: jax.Array, seen: jax.Array | None, *, frames: int, max_segment: int) -> StreamPlan:
    if seen is not None:
        segments = jnp.where(seen, segments, -1)
    return stream_plan(segments, frames=frames, max_segment=max_segment)


def attend_stream(qkv: jax.Array, plan: Plan, key_bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside the frames of streams, by the kernel that `plan` was made for.

    qkv [B, tokens.., 3, H, d], finite `key_bias` [B, tokens..] -> [B, tokens.., H, d]; the axes between hold a stream
    in order. Softmax in float32; tokens of no frame give zeros. Rows and heads may be split over devices.
    """
    batch, lead, tail = qkv.shape[0], qkv.shape[:-3], qkv.shape[-2:]
    qkv = qkv.reshape(batch, -1, 3, *tail)
    bias = None if key_bias is None else key_bias.reshape(batch, -1)
    rows, heads = split_axes(batch, dims.ACT_BATCH), split_axes(tail[0], dims.ACT_HEADS)

    def local(qkv: jax.Array, plan: Plan, bias: jax.Array | None) -> jax.Array:
        if isinstance(plan, LoopPlan):
            return loop_attention(qkv, plan, bias)
        return stream_attention(qkv, plan, key_bias=bias)

    by_row = PartitionSpec(rows)
    specs = (PartitionSpec(rows, None, None, heads), by_row, None if bias is None else by_row)
    return on_shards(local, specs, PartitionSpec(rows, None, heads))(qkv, plan, bias).reshape(*lead, *tail)


def attend_frames(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    key_bias: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    counts: jax.Array | None = None,
    kernels: str = "xla",
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside each group of tokens.

    q [..., Sq, H, d], k and v [..., Sk, H, d]; `key_bias` finite floats [..., Sk], the same for all heads and queries;
    `key_mask` bool [..., Sk], False hides a key; `counts` whole numbers [...]: only the first of a group are tokens.
    Softmax in float32, result [..., Sq, H, d] in q.dtype. A group without a visible key gives exact zeros, and finite
    gradients; what padding queries give is nobody's.

    `kernels` is "gpu" (cuDNN: half precision, no `key_mask`, leading axis B) or one of those that take XLA's.
    """
    if k.shape != v.shape or q.shape[-2:] != k.shape[-2:] or q.shape[:-3] != k.shape[:-3]:
        raise ValueError(
            f"Frame attention wants q [..., Sq, H, d] and k, v [..., Sk, H, d]; got {q.shape}, {k.shape}, {v.shape}."
        )
    for name, x in (("key_bias", key_bias), ("key_mask", key_mask)):
        if x is not None and x.shape != k.shape[:-2]:
            raise ValueError(f"{name} has shape {x.shape}; one entry per key is {k.shape[:-2]}.")
    if counts is not None and counts.shape != k.shape[:-3]:
        raise ValueError(f"counts has shape {counts.shape}; one entry per group is {k.shape[:-3]}.")
    if key_mask is not None and key_mask.dtype != jnp.bool_:
        raise ValueError(f"key_mask is {key_mask.dtype}; it must be bool, True where the key is visible.")
    if kernels != "gpu":
        if counts is not None:
            alive = jnp.arange(k.shape[-3]) < counts[..., None]
            key_mask = alive if key_mask is None else key_mask & alive
        return frame_attention_xla(q, k, v, key_bias, key_mask)
    if key_mask is not None:
        raise ValueError("the 'gpu' kernels cannot hide single keys; take attention='xla' for this grid of cells")
    rows, heads = split_axes(q.shape[0], dims.ACT_BATCH), split_axes(q.shape[-2], dims.ACT_HEADS)
    by_row, tokens = PartitionSpec(rows), PartitionSpec(rows, *[None] * (q.ndim - 3), heads)
    specs = (tokens, tokens, tokens, None if key_bias is None else by_row, None if counts is None else by_row)
    return on_shards(frame_attention_cudnn, specs, tokens)(q, k, v, key_bias, counts)


def plan_rows(rule_q: RowRule, rule_k: RowRule, *, kernels: str, block: int = 512) -> RowsPlan:
    """Who sees whom in packed rows (`mask_rows`), for `attend_rows`; once per forward.

    Rules [B, S] and [B, S2] of queries and keys. `kernels` is "tpu" (`ops.row_stream`), "gpu" (`ops.row_attention_gpu`)
    or one of those that take XLA's, which goes through the queries in blocks of `block`. A single query a row, as in
    decoding, is bound by reading the keys: XLA does that everywhere.
    """
    for name, rule in (("rule_q", rule_q), ("rule_k", rule_k)):
        if any(field.shape != rule.order.shape for field in rule):
            raise ValueError(f"Every field of {name} must have shape {rule.order.shape}, one entry per token.")
    if block < 1:
        raise ValueError(f"block is {block}; it must be a positive number of queries.")
    makers: dict[str, Any] = {"tpu": row_plan, "gpu": row_plan_gpu}
    make = makers.get(kernels)
    if make is None or rule_q.order.shape[1] == 1:
        return RulePlan(rule_q, rule_k, block)
    rows = PartitionSpec(split_axes(rule_q.order.shape[0], dims.ACT_BATCH))
    return on_shards(make, (rows, rows), rows)(rule_q, rule_k)


def attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, plan: RowsPlan) -> jax.Array:
    """Grouped-query attention over packed rows, by the kernel that `plan` was made for.

    q [B, S, H, d], k and v [B, S2, Hkv, d] with Hkv dividing H (key head j serves query heads j*H/Hkv ...). No kernel
    holds S x S2 values in either pass. Softmax in float32, result [B, S, H, d] in q.dtype; padding queries give exact
    zeros. Rows and heads may be split over devices.
    """
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "Row attention wants q [B, S, H, d] and k, v [B, S2, Hkv, d] with Hkv dividing H; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    if isinstance(plan, RulePlan):
        planned = plan.rule_q.order.shape, plan.rule_k.order.shape
        if planned != (q.shape[:2], k.shape[:2]):
            raise ValueError(f"The plan was made for rows {planned[0]} and {planned[1]}, not {q.shape} and {k.shape}.")
        return row_attention_xla(q, k, v, plan.rule_q, plan.rule_k, plan.block)
    kernel: Any = row_attention_gpu if isinstance(plan, GpuRowPlan) else row_stream_attention
    # Query heads follow their key head, so both are split alike or not at all.
    rows, heads = split_axes(q.shape[0], dims.ACT_BATCH), split_axes(k.shape[2], dims.ACT_KV_HEADS)
    tokens = PartitionSpec(rows, None, heads)
    return on_shards(kernel, (tokens, tokens, tokens, PartitionSpec(rows)), tokens)(q, k, v, plan)
