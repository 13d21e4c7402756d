"""The stream for a kernel that reads it as it lies: nothing is gathered, whatever the frames hold (CPU, TPU)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sttts_jax.ops.attention.frames import StreamPlan, attend_stream, plan_stream
from sttts_jax.ops.attention.kernels import STREAM_KERNELS
from sttts_jax.ops.token_moves import heads_to_tokens, tokens_to_heads
from sttts_jax.pruning.pack import check_filled, check_patches, check_survivors, take_tokens
from sttts_jax.pruning.select import Kept


@struct.dataclass
class RaggedLayout:
    """The stream, tokens [B, K * W, D], and the kernel's plan of it; every block uses the same plan.

    The tokens are flat, because a TPU pads the last axis but one: 9 patches of a cell to 16.
    """

    kept: Kept
    plan: StreamPlan

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> [B, K * W, D]."""
        check_patches(x, self.kept.mask.shape)
        # Patch by patch: cells of W patches that become a flat stream take a TPU's compiler minutes, and a copy.
        ids, inverse = (_of_patches(cells, x.shape[3]) for cells in (self.kept.ids, self.kept.inverse))
        return take_tokens(x.reshape(x.shape[0], -1, x.shape[-1]), ids, inverse)

    def attend(self, qkv: jax.Array) -> jax.Array:
        """[B, K * W, 3, H, d] -> [B, K * W, H, d], in place: the plan knows where frames begin and end."""
        return heads_to_tokens(attend_stream(tokens_to_heads(qkv), self.plan))

    def stream(self, tokens: jax.Array) -> jax.Array:
        """[B, K * W, D] -> [B, K, W, D]."""
        return tokens.reshape(*self.kept.ids.shape, -1, tokens.shape[-1])


def _of_patches(cells: jax.Array, window: int) -> jax.Array:
    """Places of cells, int32 [B, n] -> those of their patches [B, n * W]; a place beyond the end stays beyond it."""
    patch = jnp.arange(cells.shape[1] * window, dtype=jnp.int32)  # [n * W]
    return jnp.take(cells, patch // window, axis=1, mode="clip") * window + patch % window


def ragged_layout(kept: Kept, window: int, filled: np.ndarray | None = None, *, kernels: str) -> RaggedLayout:
    """The layout of rows whose cells have `window` patches.

    `filled` bool [C, W]: those that exist (None: all); `kernels` as for `ops.attention.frames.plan_stream`. Raises
    ValueError for others, and for survivors that no layout holds.
    """
    check_survivors(kept)
    check_filled(kept, filled)
    if kernels not in STREAM_KERNELS:
        raise ValueError(f"streams take the kernels {' or '.join(STREAM_KERNELS)}, not {kernels!r}; see pruning.layout")
    rows, capacity = kept.ids.shape
    frames, cells = kept.mask.shape[-2:]
    # The frame of a token is the number of frames that end before it, F after the last survivor: repeated numbers of
    # cells would take a TPU's compiler longer than a block.
    ends = jnp.minimum(jnp.cumsum(kept.mask.sum(axis=2), axis=1), capacity) * window  # [B, F]
    segments = jnp.sum(ends[..., None] <= jnp.arange(capacity * window), axis=1, dtype=jnp.int32)  # [B, K*W]
    seen = None if filled is None else jnp.asarray(filled)[kept.ids % cells].reshape(rows, capacity * window)
    return RaggedLayout(kept, plan_stream(segments, seen, frames=frames, max_segment=cells * window, kernels=kernels))
