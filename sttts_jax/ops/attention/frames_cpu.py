"""Attention inside the frames of a stream, frame by frame: the XLA kernel for CPUs.

Frames lie side by side in the stream, so each is a slice; a branch of the smallest size that holds it does the work,
and only its frame is written. No gather, little padding, and the logits of one frame and of few heads at a time, which
stay in the cache. Both passes keep only inputs and results: the weights are computed again for gradients.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.frames_xla import masked_softmax
from sttts_jax.ops.remat import attention_result

RUNGS = 9
HEADS = 2  # at a time: 4 MiB of logits for 729 patches, and something for each of two threads


@struct.dataclass
class CpuStreamPlan:
    """Where the frames of a batch of streams lie, B * F of them, counted over the flattened batch.

    starts, counts   int32 [B * F]    first token, number of tokens
    rung             int32 [B * F]    0 for no tokens, else 1 + index of the smallest size that holds the frame
    seen             bool [B * S]     False for tokens inside of a frame that do not exist, or None: all do
    sizes            tokens of the branches, rising
    """

    starts: jax.Array
    counts: jax.Array
    rung: jax.Array
    seen: jax.Array | None
    sizes: tuple[int, ...] = struct.field(pytree_node=False)


def plan_stream_cpu(segments: jax.Array, seen: jax.Array | None, *, frames: int, max_segment: int) -> CpuStreamPlan:
    """The plan of streams whose token s of row b belongs to frame segments[b, s].

    segments int32 [B, S]: ids 0 .. frames - 1 in rising order, then any larger one for padding; `seen` bool [B, S].
    No frame may have more than `max_segment` tokens.
    """
    rows, length = segments.shape
    find = jax.vmap(lambda ids, side: jnp.searchsorted(ids, jnp.arange(frames), side=side), in_axes=(0, None))
    starts, ends = find(segments, "left"), find(segments, "right")  # [B, F]
    counts = (ends - starts).reshape(-1).astype(jnp.int32)  # [B * F]
    starts = (starts + length * jnp.arange(rows)[:, None]).reshape(-1).astype(jnp.int32)  # [B * F]
    # Equal steps: what is computed beside a frame is less than a ninth of the largest one.
    largest = min(max_segment, rows * length)
    sizes = tuple(sorted({-(-largest * i // RUNGS) for i in range(1, RUNGS + 1)}))
    rung = jnp.where(counts > 0, 1 + jnp.searchsorted(jnp.asarray(sizes), counts), 0).astype(jnp.int32)
    return CpuStreamPlan(starts, counts, rung, None if seen is None else seen.reshape(-1), sizes)


def attend_stream_cpu(qkv: jax.Array, plan: CpuStreamPlan, key_bias: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside the frames of streams.

    qkv [B, S, 3, H, d], `key_bias` finite floats [B, S], the same for all heads and queries; softmax in float32, result
    [B, S, H, d] in qkv.dtype, zeros where there is no frame.
    """
    batch, length, _, heads, width = qkv.shape
    bias = None if key_bias is None else key_bias.astype(jnp.float32).reshape(-1)
    return _attend(qkv.reshape(batch * length, 3, heads, width), bias, plan).reshape(batch, length, heads, width)


@jax.custom_vjp
def _attend(qkv: jax.Array, bias: jax.Array | None, plan: CpuStreamPlan) -> jax.Array:
    def one(out: jax.Array, at: _Slice) -> jax.Array:
        key_bias = None if bias is None else at.take(bias)  # [size]

        def heads(qkv: jax.Array) -> jax.Array:
            q, k, v = qkv  # [HEADS, size, d]
            weights = _weights(q, k, key_bias, at.alive)  # [HEADS, query, key]
            result = jnp.einsum("hqk,hkd->hqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return result.astype(v.dtype)  # [HEADS, size, d]

        return at.put(out, _tokens_first(jax.lax.map(heads, _heads_first(at.take(qkv)))))

    return _each_frame(one, jnp.zeros((qkv.shape[0], *qkv.shape[2:]), qkv.dtype), plan)


@dataclass(frozen=True)
class _Slice:
    """`size` tokens of the flat stream in which a frame lies, at `first`; the frame is where `alive` [size] is set."""

    first: jax.Array
    alive: jax.Array
    size: int

    @classmethod
    def of(cls, size: int, start: jax.Array, count: jax.Array, length: int, seen: jax.Array | None) -> "_Slice":
        # At the end of the stream the slice begins before its frame, so that it ends with the array.
        first = jnp.minimum(start, length - size)
        place = jnp.arange(size) + first - start  # [size], counted from the frame's first token
        alive = (place >= 0) & (place < count)
        if seen is not None:
            alive &= jax.lax.dynamic_slice_in_dim(seen, first, size)
        return cls(first, alive, size)

    def take(self, x: jax.Array) -> jax.Array:
        """The frame's tokens of x [tokens, ...], zeros beside it: what lies there may be NaN, and NaN * 0 is."""
        return jnp.where(self._alive(x), self._cut(x), 0)

    def _cut(self, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, self.first, self.size)

    def _alive(self, x: jax.Array) -> jax.Array:
        return self.alive.reshape(-1, *[1] * (x.ndim - 1))

    def put(self, x: jax.Array, part: jax.Array) -> jax.Array:
        """x with the frame's tokens replaced by those of `part`."""
        part = jnp.where(self._alive(part), part.astype(x.dtype), self._cut(x))
        return jax.lax.dynamic_update_slice_in_dim(x, part, self.first, 0)


def _each_frame(one: Callable[..., Any], carry: Any, plan: CpuStreamPlan) -> Any:
    """`one(carry, slice) -> carry` for every frame that has tokens."""
    length = jax.tree.leaves(carry)[0].shape[0]

    def branch(size: int, carry: Any, start: jax.Array, count: jax.Array) -> Any:
        return one(carry, _Slice.of(size, start, count, length, plan.seen)) if size else carry

    branches = [functools.partial(branch, size) for size in (0, *plan.sizes)]

    def step(carry: Any, frame: tuple[jax.Array, ...]) -> tuple[Any, None]:
        start, count, rung = frame
        return jax.lax.switch(rung, branches, carry, start, count), None

    return jax.lax.scan(step, carry, (plan.starts, plan.counts, plan.rung))[0]


def _heads_first(x: jax.Array) -> jax.Array:
    """[size, .., H, d] -> [groups, .., H / groups, size, d]: plain batched products are the fast ones on CPU."""
    *lead, heads, width = x.shape
    group = HEADS if heads % HEADS == 0 else 1
    # [size, .., groups, group, d] -> [groups, .., group, size, d]
    return jnp.moveaxis(x.reshape(*lead, heads // group, group, width), (0, -3), (-2, 0))


def _tokens_first(x: jax.Array) -> jax.Array:
    """The inverse of `_heads_first`."""
    x = jnp.moveaxis(x, (-2, 0), (0, -3))  # [size, .., groups, group, d]
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _weights(q: jax.Array, k: jax.Array, bias: jax.Array | None, alive: jax.Array) -> jax.Array:
    """float32 [heads, size, size]; what lies beside the frame gets rows of weights, too."""
    logits = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return masked_softmax(logits if bias is None else logits + bias, alive)


def _attend_fwd(qkv: jax.Array, bias: jax.Array | None, plan: CpuStreamPlan) -> tuple[jax.Array, tuple]:
    out = attention_result(_attend(qkv, bias, plan))
    return out, (qkv, bias, plan, out)


def _attend_bwd(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array | None, None]:
    qkv, bias, plan, out = saved

    def one(grads: tuple[jax.Array, jax.Array | None], at: _Slice) -> tuple[jax.Array, jax.Array | None]:
        key_bias = None if bias is None else at.take(bias)

        def heads(part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array | None]:
            (q, k, v), o, dout = part  # [HEADS, size, d] each
            weights = _weights(q, k, key_bias, at.alive)  # [HEADS, query, key]
            # [HEADS, query, 1], the mean of dweights under the weights: sum_k w_k (dout . v_k) = dout . o
            delta = jnp.sum(dout.astype(jnp.float32) * o.astype(jnp.float32), axis=-1, keepdims=True)
            dweights = jnp.einsum("hqd,hkd->hqk", dout, v, preferred_element_type=jnp.float32)
            dlogits = weights * (dweights - delta)  # [HEADS, query, key]
            slope = None if bias is None else jnp.sum(dlogits, axis=(0, 1))  # [key]
            weights, dlogits = weights.astype(q.dtype), (dlogits * q.shape[-1] ** -0.5).astype(q.dtype)
            dq = jnp.einsum("hqk,hkd->hqd", dlogits, k, preferred_element_type=jnp.float32)
            dk = jnp.einsum("hqk,hqd->hkd", dlogits, q, preferred_element_type=jnp.float32)
            dv = jnp.einsum("hqk,hqd->hkd", weights, dout, preferred_element_type=jnp.float32)
            return jnp.stack([dq, dk, dv]).astype(q.dtype), slope  # [3, HEADS, size, d], [key]

        # [groups, 3, HEADS, size, d], [groups, size]
        dqkv, slopes = jax.lax.map(heads, tuple(_heads_first(at.take(x)) for x in (qkv, out, g)))
        dbias = None if slopes is None or grads[1] is None else at.put(grads[1], jnp.sum(slopes, axis=0))
        return at.put(grads[0], _tokens_first(dqkv)), dbias

    zero = (jnp.zeros_like(qkv), None if bias is None else jnp.zeros_like(bias))
    return *_each_frame(one, zero, plan), None


_attend.defvjp(_attend_fwd, _attend_bwd)
