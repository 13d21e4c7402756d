"""Attention inside the frames of a packed stream, straight from the stream: the front of the Pallas TPU kernels.

The tokens of a frame lie side by side in the stream, so a block of queries needs a short range of key blocks only.
`plan_stream_tpu` lists the pairs of blocks that share a frame, once per forward; the kernels walk that list with a grid
of exactly its length, so neither padding nor a pair of blocks without a common frame costs anything, and no score
distribution needs another compilation.

Everything is transposed: q, k, v as [H, d, S], logits as [key, query]. The tokens fill the lanes, so a head of 72
takes 72 sublanes instead of 128 lanes of HBM; maxima and sums run over sublanes; and the softmax statistics are rows.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.frames_tpu_kernels import Shapes, backward, forward
from sttts_jax.ops.attention.pallas_softmax import check_dtypes
from sttts_jax.ops.attention.round_up import round_up
from sttts_jax.ops.remat import attention_result


@struct.dataclass
class TpuStreamPlan:
    """Which blocks of a batch of streams meet. Blocks are counted over the whole batch, B * ceil(S / block) of them.

    ids      int32 [B, 1, ceil(S / block) * block]   frame of each token, -1 for padding
    own      int32 [pairs + 1]      first block of each pair, rising
    other    int32 [pairs + 1]      second block; every pair is there in both orders, every block meets itself
    count    int32 [1]              pairs that exist; the rest of the lists is unused
    block    tokens of a block
    typical  tokens of a frame on average, for the cost that the compiler is told
    """

    ids: jax.Array
    own: jax.Array
    other: jax.Array
    count: jax.Array
    block: int = struct.field(pytree_node=False)
    typical: float = struct.field(pytree_node=False)


def plan_stream_tpu(segments: jax.Array, *, frames: int, max_segment: int, block: int = 256) -> TpuStreamPlan:
    """The plan of streams whose token s of row b belongs to frame segments[b, s].

    segments int32 [B, S]: ids 0 .. frames - 1, in rising order along S; any other id marks padding, which may lie
    anywhere and sees nothing. No frame may stretch over more than `max_segment` tokens (padding between its tokens
    counts): this bounds the list and cannot be checked here. `block` is a multiple of 128.
    """
    if segments.ndim != 2 or not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f"segments must be whole numbers [B, S], one frame id per token; got {segments.shape}.")
    if block < 128 or block % 128:
        raise ValueError(f"block is {block}; the stream kernel wants a multiple of 128 tokens.")
    if frames < 1 or max_segment < 1:
        raise ValueError(f"frames={frames} and max_segment={max_segment} must be positive.")
    rows, length = segments.shape
    ids = jnp.where((segments >= 0) & (segments < frames), segments, -1).astype(jnp.int32)
    ids = jnp.pad(ids, ((0, 0), (0, -length % block)), constant_values=-1)  # [B, n * block]
    low, high = jax.vmap(lambda row: _ranges(row.reshape(-1, block), frames))(ids)  # [B, n]

    number = low.shape[1]
    # A block meets itself, those before it into which the frame of its first token reaches, and those after its last.
    reach = 1 + -(-(max_segment - 1) // block) + (block + max_segment - 2) // block
    pairs = rows * number * min(number, reach)
    base = jnp.arange(rows, dtype=jnp.int32)[:, None] * number
    low, size = (base + low).reshape(-1), (high - low + 1).reshape(-1)  # [B * n]
    ends = jnp.cumsum(size, dtype=jnp.int32)  # [B * n], of each block's pairs in the list
    own = jnp.repeat(jnp.arange(rows * number, dtype=jnp.int32), size, total_repeat_length=pairs + 1)
    other = low[own] + jnp.arange(pairs + 1, dtype=jnp.int32) - (ends - size)[own]  # [pairs + 1]
    other = jnp.minimum(other, rows * number - 1)
    return TpuStreamPlan(ids[:, None], own, other, ends[-1:], block, length / frames)


def _ranges(ids: jax.Array, frames: int) -> tuple[jax.Array, jax.Array]:
    """First and last block, both inclusive, that shares a frame with each block; ids [n, block] -> int32 [n] twice."""
    first = jnp.where(ids < 0, frames, ids).min(axis=1)  # [n], `frames` for a block without tokens
    last = ids.max(axis=1)  # [n], -1 for a block without tokens
    number = ids.shape[0]
    # Blocks without tokens take over what their neighbours have, so that both bounds are monotone.
    # How many blocks end before the first frame of this one, and how many begin after its last.
    low = jnp.sum(jax.lax.cummax(last) < first[:, None], axis=1, dtype=jnp.int32)
    high = number - 1 - jnp.sum(jax.lax.cummin(first, reverse=True) > last[:, None], axis=1, dtype=jnp.int32)
    itself = jnp.arange(number, dtype=jnp.int32)
    return jnp.where(last < 0, itself, low), jnp.where(last < 0, itself, high)


def attend_stream_tpu(
    qkv: jax.Array,
    plan: TpuStreamPlan,
    *,
    key_bias: jax.Array | None = None,
    head_groups: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + key_bias) v inside the frames of a stream, on TPU.

    qkv [B, S, 3, H, d] float32 or bfloat16 in stream order: queries, keys and values in one array, because taking them
    apart and putting their gradients together would copy them; `key_bias` finite floats [B, S], the same for all heads
    and queries; `plan` of the same B and S. Softmax in float32, result [B, S, H, d] in qkv.dtype; padding gives exact
    zeros and gets zero gradients, whatever it holds.

    `head_groups` splits the heads over the cores of a chip (None: two if H is even; a chip with one core does them one
    after the other). `interpret` runs the kernels on any platform, slowly. The kernels know no mesh: with several
    devices call this inside `jax.shard_map`, over the batch or the heads.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"Stream attention wants queries, keys and values as [B, S, 3, H, d]; got {qkv.shape}.")
    check_dtypes("Stream attention on TPU", qkv)
    rows, length, _, heads, width = qkv.shape
    padded = round_up(length, plan.block)
    if plan.ids.shape != (rows, 1, padded):
        raise ValueError(f"The plan was made for ids {plan.ids.shape}, not for {rows} rows of {length} tokens.")
    if key_bias is not None and key_bias.shape != (rows, length):
        raise ValueError(f"key_bias has shape {key_bias.shape}; one entry per key is {(rows, length)}.")
    groups = (1 if heads % 2 else 2) if head_groups is None else head_groups
    if groups < 1 or heads % groups:
        raise ValueError(f"head_groups={groups} does not divide {heads} heads.")

    # The last block may hang over the end of a stream, but a block larger than the array may not be.
    extra = max(plan.block - length, 0)
    qkv = jnp.pad(qkv.transpose(0, 2, 3, 4, 1), ((0, 0),) * 4 + ((0, extra),))  # [B, 3, H, d, S + extra]
    bias = None
    if key_bias is not None:
        bias = jnp.pad(key_bias.astype(jnp.float32), ((0, 0), (0, padded - length)))[:, None]  # [B, 1, padded]
    shapes = Shapes(rows, length + extra, heads, width, groups, plan.block, plan.typical, bias is not None, interpret)
    return _attend(qkv, bias, plan, shapes)[..., :length].transpose(0, 3, 1, 2)  # [B, S, H, d]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(qkv: jax.Array, bias: jax.Array | None, plan: TpuStreamPlan, shapes: Shapes) -> jax.Array:
    return _attend_fwd(qkv, bias, plan, shapes)[0]


def _attend_fwd(qkv, bias, plan, shapes):
    results = forward((plan.count, plan.own, plan.other), plan.ids, bias, qkv, shapes)
    out, lse = map(attention_result, results)
    return out, (qkv, bias, plan, out, lse)


def _attend_bwd(shapes, saved, g):
    qkv, bias, plan, out, lse = saved
    # The mean of the weights' gradients under the weights, from the result alone: [B, H, S], then as lse.
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), axis=2)
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, lse.shape[-1] - delta.shape[-1]))).reshape(lse.shape)
    lists = (plan.count, plan.own, plan.other)
    return *backward(lists, plan.ids, bias, qkv, g, lse, delta, shapes), None


_attend.defvjp(_attend_fwd, _attend_bwd)
