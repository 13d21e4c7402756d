"""Attention inside frames: the front door, which checks, refuses what no kernel can honour, and calls one."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from sttts_jax import dims
from sttts_jax.ops.attention.frames_cpu import CpuStreamPlan, attend_stream_cpu, plan_stream_cpu
from sttts_jax.ops.attention.frames_gpu import attend_frames_gpu
from sttts_jax.ops.attention.frames_tpu import TpuStreamPlan, attend_stream_tpu, plan_stream_tpu
from sttts_jax.ops.attention.frames_xla import attend_frames_xla
from sttts_jax.sharding import on_shards, shards, split_axes


@struct.dataclass
class StreamPlan:
    """A kernel's plan, every device's of its own part of the streams; `split`: the mesh axes of rows and of tokens."""

    local: CpuStreamPlan | TpuStreamPlan
    split: tuple[tuple[str, ...] | None, ...] = struct.field(pytree_node=False)


def plan_stream(
    segments: jax.Array,
    seen: jax.Array | None = None,
    *,
    frames: int,
    max_segment: int,
    kernels: str,
    whole: bool = False,
) -> StreamPlan:
    """What `attend_stream` needs to know of a batch of streams; once per forward.

    segments int32 [B, S]: the frame of each token, 0 .. frames - 1 in rising order, then any larger id for padding;
    `seen` bool [B, S]: False for tokens that do not exist (None: all do). No frame may stretch over more than
    `max_segment` tokens. `kernels` is "cpu" (`ops.attention.frames_cpu`) or "tpu" (`ops.attention.frames_tpu`).
    `whole`: all frames are there with equally many tokens and no padding, so devices may share a row out by frames;
    else they do so by heads.
    """
    make = {"cpu": plan_stream_cpu, "tpu": _plan_tpu}.get(kernels)
    if make is None:
        raise ValueError(f"the {kernels!r} kernels take slots, not streams; use 'cpu' or 'tpu'")
    rows, tokens = split_axes((segments.shape[0], frames), dims.ACT_BATCH, dims.ACT_LENGTH if whole else None)
    frames //= shards(tokens)
    make = functools.partial(make, frames=frames, max_segment=max_segment)
    by_token = PartitionSpec(rows, tokens)
    # What a plan holds begins with the rows of its device, so the plans of a row's parts lie one after the other.
    by_device = PartitionSpec((*(rows or ()), *(tokens or ())))
    local = on_shards(make, (by_token, None if seen is None else by_token), by_device)
    return StreamPlan(local(segments % frames if tokens else segments, seen), (rows, tokens))


def _plan_tpu(segments: jax.Array, seen: jax.Array | None, *, frames: int, max_segment: int) -> TpuStreamPlan:
    if seen is not None:
        segments = jnp.where(seen, segments, -1)
    return plan_stream_tpu(segments, frames=frames, max_segment=max_segment)


def attend_stream(qkv: jax.Array, plan: StreamPlan, key_bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside the frames of streams, by the kernel that `plan` was made for.

    qkv [B, tokens.., 3, H, d], finite `key_bias` [B, tokens..] -> [B, tokens.., H, d]; the axes between hold a stream
    in order. Softmax in float32; tokens of no frame give zeros. Rows, whole frames and heads may be split over devices.
    """
    batch, lead, tail = qkv.shape[0], qkv.shape[:-3], qkv.shape[-2:]
    qkv = qkv.reshape(batch, -1, 3, *tail)
    bias = None if key_bias is None else key_bias.reshape(batch, -1)
    rows, tokens = plan.split
    _, heads = split_axes((shards(tokens), tail[0]), dims.ACT_LENGTH, dims.ACT_HEADS)

    def local(qkv: jax.Array, plan: CpuStreamPlan | TpuStreamPlan, bias: jax.Array | None) -> jax.Array:
        if isinstance(plan, CpuStreamPlan):
            return attend_stream_cpu(qkv, plan, bias)
        return attend_stream_tpu(qkv, plan, key_bias=bias)

    by_token, by_device = PartitionSpec(rows, tokens), PartitionSpec((*(rows or ()), *(tokens or ())))
    specs = (PartitionSpec(rows, tokens, None, heads), by_device, None if bias is None else by_token)
    attend = on_shards(local, specs, PartitionSpec(rows, tokens, heads))
    return attend(qkv, plan.local, bias).reshape(*lead, *tail)


def attend_frames(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    key_bias: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    counts: jax.Array | None = None,
    kernels: str = "xla",
    whole: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside each group of tokens.

    q [..., Sq, H, d], k and v [..., Sk, H, d]; `key_bias` finite floats [..., Sk], the same for all heads and queries;
    `key_mask` bool [..., Sk], False hides a key; `counts` whole numbers [...]: only the first of a group are tokens.
    Softmax in float32, result [..., Sq, H, d] in q.dtype. A group without a visible key gives exact zeros, and finite
    gradients; what padding queries give is nobody's.

    `kernels` is "gpu" (cuDNN: half precision, no `key_mask`, leading axis B) or one of those that take XLA's. `whole`:
    the leading axes are B and frames, over which devices may share a row out; else they do so by heads.
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
        return attend_frames_xla(q, k, v, key_bias, key_mask)
    if key_mask is not None:
        raise ValueError("the 'gpu' kernels cannot hide single keys; take attention='xla' for this grid of cells")
    frames = (dims.ACT_LENGTH if whole else None, *[None] * (q.ndim - 4))
    split = split_axes(q.shape[:-1], dims.ACT_BATCH, *frames, dims.ACT_HEADS)
    by_group, tokens = PartitionSpec(*split[:-2]), PartitionSpec(*split)
    specs = (tokens, tokens, tokens, None if key_bias is None else by_group, None if counts is None else by_group)
    return on_shards(attend_frames_gpu, specs, tokens)(q, k, v, key_bias, counts)
