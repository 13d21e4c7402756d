"""The stream for a kernel that reads it as it lies: nothing is gathered, whatever the frames hold (CPU, TPU)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sttts_jax.ops.attention.frames import Plan, attend_stream, plan_stream
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.pack import pack_cells
from sttts_jax.pruning.select import Kept


@struct.dataclass
class RaggedLayout:
    """The stream [B, K * W, D] and the kernel's plan of it; every block uses the same plan.

    The tokens are flat, because a TPU pads the last axis but one: 9 patches of a cell to 16.
    """

    kept: Kept
    plan: Plan

    def pack(self, x: jax.Array) -> jax.Array:
        return pack_cells(x, self.kept).reshape(x.shape[0], -1, x.shape[-1])

    def attend(self, qkv: jax.Array) -> jax.Array:
        return attend_stream(qkv, self.plan)

    def stream(self, tokens: jax.Array) -> jax.Array:
        return tokens.reshape(*self.kept.ids.shape, -1, tokens.shape[-1])


def ragged_layout(kept: Kept, window: int, filled: np.ndarray | None = None, *, kernels: str) -> RaggedLayout:
    """The layout of rows whose cells have `window` patches.

    `filled` bool [C, W]: those that exist (None: all); `kernels` as for `ops.attention.frames.plan_stream`.
    """
    rows, capacity = kept.ids.shape
    frames, cells = kept.mask.shape[-2:]
    segments = jnp.repeat(kept.ids // cells, window, axis=1)
    seen = None if filled is None else jnp.asarray(filled)[kept.ids % cells].reshape(rows, capacity * window)
    return RaggedLayout(kept, plan_stream(segments, seen, frames=frames, max_segment=cells * window, kernels=kernels))


def frame_plan(grid: CellGrid, rows: int, frames: int, *, kernels: str) -> Plan:
    """The kernel's plan of whole frames, for `FrameLayout`."""
    size = grid.cells * grid.window
    segments = jnp.broadcast_to(jnp.repeat(jnp.arange(frames), size), (rows, frames * size))
    seen = None if grid.filled is None else jnp.broadcast_to(np.tile(grid.filled.reshape(-1), frames), segments.shape)
    return plan_stream(segments, seen, frames=frames, max_segment=size, kernels=kernels)
