"""Layouts: what the blocks of a vision transformer run on before and after the drop, and which one is taken.

`whole_frames` gives the one for blocks that see all patches, `survivors` the one for blocks after the drop. All are
pytrees, so that they pass through scan and remat.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sttts_jax.ops.attention.frames import StreamPlan, attend_frames, attend_stream, plan_stream
from sttts_jax.ops.attention.kernels import KERNELS, STREAM_KERNELS
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.pack import check_patches, pack_cells
from sttts_jax.pruning.ragged import ragged_layout
from sttts_jax.pruning.select import Kept
from sttts_jax.pruning.staircase import stream_layout


class Attends(Protocol):
    """All that a block asks of a layout."""

    def attend(self, qkv: jax.Array) -> jax.Array:
        """Attention inside each frame: qkv [tokens.., 3, H, d] -> [tokens.., H, d]; the tokens are those of `pack`."""
        ...


class Layout(Attends, Protocol):
    """Survivors as the dense parts of a block want them, from all patches and back to the stream.

        tokens = layout.pack(x)                  x [B, F, C, W, D] -> [tokens.., D]
        tokens = block(tokens, layout)           as often as there are blocks; each calls layout.attend
        stream = layout.stream(tokens)           [tokens.., D] -> [B, K, W, D]

    What `tokens..` is, each layout says.
    """

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> [tokens.., D]. Raises ValueError for patches that are not in cells."""
        ...

    def stream(self, tokens: jax.Array) -> jax.Array:
        """[tokens.., D] -> [B, K, W, D]: the survivors of a row in frame order, zero after the last."""
        ...


@struct.dataclass
class WholeFrames:
    """All patches as they are, tokens [B, F, C, W, D]: for kernels that take frames one beside the other.

    key_bias   float32 [B, F, C] or None     added to the attention logits of every patch of the cell
    key_mask   bool [C, W] or None           slots of the cell grid that hold a patch (None: all)
    kernels    as for `attend_frames`
    """

    key_bias: jax.Array | None = None
    key_mask: jax.Array | None = None
    kernels: str = struct.field(pytree_node=False, default="xla")

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D], as it is."""
        check_patches(x)
        return x

    def unpack(self, tokens: jax.Array) -> jax.Array:
        """The inverse of `pack`: [B, F, C, W, D]."""
        return tokens

    def attend(self, qkv: jax.Array) -> jax.Array:
        """[B, F, C, W, 3, H, d] -> [B, F, C, W, H, d]."""
        lead, (cells, window), tail = qkv.shape[:-5], qkv.shape[-5:-3], qkv.shape[-2:]
        qkv = qkv.reshape(*lead, cells * window, 3, *tail)  # [B, F, C*W, 3, H, d]
        bias = None if self.key_bias is None else jnp.repeat(self.key_bias, window, axis=-1)  # [B, F, C*W]
        mask = None if self.key_mask is None else jnp.broadcast_to(self.key_mask.reshape(-1), (*lead, cells * window))
        q, k, v = (qkv[..., i, :, :] for i in range(3))  # [B, F, C*W, H, d] each
        out = attend_frames(q, k, v, key_bias=bias, key_mask=mask, kernels=self.kernels, whole=True)
        return out.reshape(*lead, cells, window, *tail)


@struct.dataclass
class FlatFrames:
    """All patches as one stream a row, tokens [B, F * C * W, D]: for kernels that read a stream as it lies.

    Flat, because a TPU pads the last axis but one: 9 patches of a cell to 16, of everything that the blocks read and
    write.

    plan       the kernel's, of these frames
    key_bias   float32 [B, F, C] or None     added to the attention logits of every patch of the cell
    shape      F, C, W
    """

    plan: StreamPlan
    key_bias: jax.Array | None = None
    shape: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> [B, F * C * W, D]."""
        check_patches(x, (x.shape[0], *self.shape))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def unpack(self, tokens: jax.Array) -> jax.Array:
        """The inverse of `pack`: [B, F, C, W, D]."""
        return tokens.reshape(tokens.shape[0], *self.shape, tokens.shape[-1])

    def attend(self, qkv: jax.Array) -> jax.Array:
        """[B, F * C * W, 3, H, d] -> [B, F * C * W, H, d]."""
        if self.key_bias is None:
            return attend_stream(qkv, self.plan)
        bias = jnp.repeat(self.key_bias, self.shape[-1], axis=-1)  # [B, F, C*W]
        return attend_stream(qkv, self.plan, bias.reshape(qkv.shape[:2]))


@struct.dataclass
class Undropped:
    """Blocks after a drop that removes nothing: they run on whole frames, and `kept` leaves out the padding."""

    frames: WholeFrames | FlatFrames
    kept: Kept

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> the tokens of `frames`."""
        return self.frames.pack(x)

    def attend(self, qkv: jax.Array) -> jax.Array:
        """As `frames` does."""
        return self.frames.attend(qkv)

    def stream(self, tokens: jax.Array) -> jax.Array:
        """The tokens of `frames` -> [B, K, W, D]."""
        return pack_cells(self.frames.unpack(tokens), self.kept)


def whole_frames(grid: CellGrid, shape: tuple[int, ...], kernels: str) -> WholeFrames | FlatFrames:
    """What blocks on all patches, of `shape` [B, F, C, W, ..], run on.

    `kernels` as `ops.attention.kernels.choose_kernels` gives them. Raises ValueError for others, and for patches that
    are not in the cells of `grid`.
    """
    _check_kernels(kernels)
    if len(shape) != 5 or shape[2:4] != (grid.cells, grid.window):
        raise ValueError(
            f"patches of shape {shape} are not in cells: a grid of {grid.grid} wants [B, F, {grid.cells}, "
            f"{grid.window}, ..]; put them there with CellGrid.to_cells"
        )
    if kernels in STREAM_KERNELS:
        return FlatFrames(_plan_frames(grid, shape[0], shape[1], kernels), shape=shape[1:4])
    key_mask = None if grid.filled is None else jnp.asarray(grid.filled)
    return WholeFrames(key_mask=key_mask, kernels=kernels)


def survivors(grid: CellGrid, kept: Kept, kernels: str) -> Layout:
    """What blocks after the drop run on: the stream without padding. `kernels` as for `whole_frames`."""
    _check_kernels(kernels)
    if kernels in STREAM_KERNELS:
        return ragged_layout(kept, grid.window, grid.filled, kernels=kernels)
    return stream_layout(kept, grid.filled, kernels=kernels)


def _check_kernels(kernels: str) -> None:
    known = [name for name in KERNELS if name != "auto"]
    if kernels not in known:
        raise ValueError(
            f"no layout is made for the kernels {kernels!r}; choose one of {', '.join(known)}, as "
            "ops.attention.kernels.choose_kernels does"
        )


def _plan_frames(grid: CellGrid, rows: int, frames: int, kernels: str) -> StreamPlan:
    """The kernel's plan of whole frames."""
    size = grid.cells * grid.window
    segments = jnp.broadcast_to(jnp.repeat(jnp.arange(frames), size), (rows, frames * size))  # [B, F*C*W]
    seen = None if grid.filled is None else jnp.broadcast_to(np.tile(grid.filled.reshape(-1), frames), segments.shape)
    return plan_stream(segments, seen, frames=frames, max_segment=size, kernels=kernels, whole=True)
