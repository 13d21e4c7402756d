"""Survivors <-> dense arrays: gathers whose transpose is a gather, and the layout that packs nothing.

A layout is what the blocks after the drop run on. All have three methods, and are pytrees, so that they pass through
scan and remat:

    pack(x [B, F, C, W, D]) -> tokens        the arrays that the dense parts of a block run on
    attend(qkv [tokens.., 3, H, d]) -> [tokens.., H, d]      attention inside each frame
    stream(tokens) -> [B, K, W, D]           the survivors of a row in frame order, zero after the last
"""

import jax
import jax.numpy as jnp
from flax import struct

from sttts_jax.ops.attention.frames import Plan, attend_frames, attend_stream
from sttts_jax.pruning.select import Kept


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index] along axis 0, zero where index == len(x); index [I] and inverse [len(x)] undo each other (I: "nowhere").

    The gradient is take_rows(g, inverse, index): a gather, where plain autodiff would scatter-add.
    """
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _take_rows_fwd(x, index, inverse):
    return take_rows(x, index, inverse), (index, inverse)


def _take_rows_bwd(maps, g):
    index, inverse = maps
    return take_rows(g, inverse, index), None, None


take_rows.defvjp(_take_rows_fwd, _take_rows_bwd)

# Rows of a batch are packed each by itself: vmap keeps the gathers local, so a sharded batch needs no collective.
take_batch = jax.vmap(take_rows)


def flatten_cells(x: jax.Array) -> jax.Array:
    """[B, F, C, ...] -> [B, F * C, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


@struct.dataclass
class FrameLayout:
    """Whole frames: the blocks before the drop, the biased block, and runs that drop nothing.

    kept       survivors, for `stream`
    key_bias   float32 [B, F, C] or None     added to the attention logits of every patch of the cell
    key_mask   bool [C, W] or None           empty slots of the cell grid
    plan       of a kernel for streams, or None: then the one that `attend_frames` knows as `kernels`
    shape      F, C, W of a plan: its tokens are flat, because a TPU pads the last axis but one (9 patches of a cell
               to 16, of everything that the blocks read and write)
    """

    kept: Kept | None
    key_bias: jax.Array | None = None
    key_mask: jax.Array | None = None
    plan: Plan | None = None
    kernels: str = struct.field(pytree_node=False, default="xla")
    shape: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def pack(self, x: jax.Array) -> jax.Array:
        return x if self.plan is None else x.reshape(x.shape[0], -1, x.shape[-1])

    def unpack(self, tokens: jax.Array) -> jax.Array:
        """The inverse of `pack`: [B, F, C, W, D]."""
        return tokens if self.plan is None else tokens.reshape(tokens.shape[0], *self.shape, tokens.shape[-1])

    def attend(self, qkv: jax.Array) -> jax.Array:
        if self.plan is not None:
            bias = None if self.key_bias is None else jnp.repeat(self.key_bias, self.shape[-1], axis=-1)
            return attend_stream(qkv, self.plan, None if bias is None else bias.reshape(qkv.shape[:2]))
        lead, (cells, window), tail = qkv.shape[:-5], qkv.shape[-5:-3], qkv.shape[-2:]
        bias = None if self.key_bias is None else jnp.repeat(self.key_bias, window, axis=-1)
        qkv = qkv.reshape(*lead, cells * window, 3, *tail)
        mask = None if self.key_mask is None else jnp.broadcast_to(self.key_mask.reshape(-1), (*lead, cells * window))
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        out = attend_frames(q, k, v, key_bias=bias, key_mask=mask, kernels=self.kernels)
        return out.reshape(*lead, cells, window, *tail)

    def stream(self, tokens: jax.Array) -> jax.Array:
        assert self.kept is not None
        return pack_cells(self.unpack(tokens), self.kept)


def pack_cells(x: jax.Array, kept: Kept) -> jax.Array:
    """Survivors of x [B, F, C, ...] as a dense stream [B, K, ...] in frame order, zero after the last."""
    return take_batch(flatten_cells(x), kept.ids, kept.inverse)


def unpack_cells(stream: jax.Array, kept: Kept) -> jax.Array:
    """[B, K, ...] -> [B, F, C, ...] with zeros in the dropped cells: the transpose of `pack_cells`."""
    frames, cells = kept.mask.shape[-2:]
    flat = take_batch(stream, kept.inverse, kept.ids)
    return flat.reshape(flat.shape[0], frames, cells, *flat.shape[2:])
