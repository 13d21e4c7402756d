"""The paper's packing: frames put first-fit-decreasing into bins of one whole frame, attention masked inside a bin.

A reference mode. The number of bins depends on the scores, so the blocks after the drop are compiled once for every
rung of a ladder of bin counts, and the smallest rung that fits runs. With `refill`, as in the authors' code, a frame
alone in its bin gets its dropped patches back as attention context; they are still dropped at the end, but a token's
features then depend on what else is in the batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sttts_jax.ops.attention.frames_xla import masked_softmax
from sttts_jax.pruning.pack import check_filled, check_patches, check_survivors, flatten_cells, take_batch, take_rows
from sttts_jax.pruning.select import Kept

RUNGS = 4  # of the ladder


@struct.dataclass
class BinPlan:
    """Where the frames of a batch go. G = B * F frames.

    used    int32 []           bins in use
    target  int32 [G * C]      place bin * C + offset of every cell that goes in, G * C for the others
    """

    used: jax.Array
    target: jax.Array


def ladder(frames: int, capacity: int, cells: int) -> tuple[int, ...]:
    """Bin counts to compile for, rising: from what a perfect packing needs to one bin a frame."""
    low = -(-capacity // cells)
    return tuple(sorted({int(round(low + (frames - low) * i / (RUNGS - 1))) for i in range(RUNGS)} | {frames}))


def plan_bins(kept: Kept, refill: bool) -> BinPlan:
    """First-fit-decreasing over all frames of the batch, by number of survivors; equal frames keep their order."""
    check_survivors(kept)
    cells = kept.mask.shape[-1]
    mask = kept.mask.reshape(-1, cells)  # [G, C]
    frames = mask.shape[0]
    counts = mask.sum(axis=-1, dtype=jnp.int32)  # [G]

    def place(room, frame):  # room [G]: cells that are free in each bin
        count = counts[frame]
        chosen = jnp.argmax(room >= count)
        offset = cells - room[chosen]
        return room.at[chosen].add(-count), (chosen, offset)

    order = jnp.argsort(-counts, stable=True)  # [G], frames by falling count
    room, (chosen, offset) = jax.lax.scan(place, jnp.full(frames, cells, jnp.int32), order)  # [G] each, by rank
    bin_of = jnp.zeros(frames, jnp.int32).at[order].set(chosen.astype(jnp.int32))  # [G], by frame
    offset_of = jnp.zeros(frames, jnp.int32).at[order].set(offset)  # [G]
    inside = mask
    if refill:
        alone = (counts > 0) & (room[bin_of] == cells - counts)  # [G]
        inside = mask | alone[:, None]  # [G, C]
    rank = jnp.cumsum(inside, axis=-1, dtype=jnp.int32) - 1  # [G, C], the place of a cell among its frame's
    target = jnp.where(inside, bin_of[:, None] * cells + offset_of[:, None] + rank, frames * cells)  # [G, C]
    return BinPlan(used=jnp.sum(room < cells), target=target.reshape(-1))


@struct.dataclass
class BinLayout:
    """R bins of C cells: tokens [R, C, W, D].

    kept      the survivors, for `stream`
    source    int32 [R * C]    flat cell of the batch in each place, G * C where empty
    target    int32 [G * C]    its inverse, R * C for cells that are not in a bin
    frame     int32 [R, C]     frame of each place, -1 where empty: attention stays inside it
    key_mask  bool [R, C, W] or None: filled patches, only when the cell does not divide the grid
    """

    kept: Kept
    source: jax.Array
    target: jax.Array
    frame: jax.Array
    key_mask: jax.Array | None

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> [R, C, W, D]."""
        check_patches(x, self.kept.mask.shape)
        cells, flat = x.shape[2], flatten_cells(x)  # [B, F*C, W, D]
        packed = take_rows(flat.reshape(-1, *flat.shape[2:]), self.source, self.target)  # [R*C, W, D]
        return packed.reshape(-1, cells, *packed.shape[1:])

    def attend(self, qkv: jax.Array) -> jax.Array:
        """[R, C, W, 3, H, d] -> [R, C, W, H, d]: over whole bins, other frames of the bin masked."""
        bins, cells, window, _, heads, dim = qkv.shape
        q, k, v = (qkv[:, :, :, i].reshape(bins, cells * window, heads, dim) for i in range(3))  # [R, C*W, H, d] each
        same = (self.frame[:, :, None] == self.frame[:, None, :]) & (self.frame >= 0)[:, None, :]  # [R, C, C]
        allowed = jnp.repeat(jnp.repeat(same, window, axis=1), window, axis=2)  # [R, C*W, C*W]
        if self.key_mask is not None:
            allowed &= self.key_mask.reshape(bins, 1, cells * window)
        logits = jnp.einsum("rqhd,rkhd->rhqk", q, k, preferred_element_type=jnp.float32) * dim**-0.5
        weights = masked_softmax(logits, allowed[:, None]).astype(v.dtype)  # [R, H, C*W, C*W]
        return jnp.einsum("rhqk,rkhd->rqhd", weights, v).reshape(bins, cells, window, heads, dim)

    def stream(self, tokens: jax.Array) -> jax.Array:
        """[R, C, W, D] -> [B, K, W, D]; cells that refilled a bin are left behind."""
        batch, frames, cells = self.kept.mask.shape
        flat = tokens.reshape(-1, *tokens.shape[2:])  # [R*C, W, D]
        full = take_rows(flat, self.target, self.source).reshape(batch, frames * cells, *flat.shape[1:])
        return take_batch(full, self.kept.ids, self.kept.inverse)


def bin_layout(kept: Kept, plan: BinPlan, bins: int, filled: np.ndarray | None = None) -> BinLayout:
    """The maps of one rung of the ladder; `bins` must be at least `plan.used`. Raises ValueError as `stream_layout`."""
    check_survivors(kept)
    check_filled(kept, filled)
    cells, total = kept.mask.shape[-1], plan.target.shape[0]  # C, G*C
    target = jnp.where(plan.target < bins * cells, plan.target, bins * cells)  # [G*C]
    places = jnp.full(bins * cells, total, jnp.int32)  # [R*C]
    source = places.at[target].set(jnp.arange(total, dtype=jnp.int32), mode="drop")  # [R*C]
    frame = jnp.where(source < total, source // cells, -1).reshape(bins, cells)  # [R, C]
    key_mask = None
    if filled is not None:
        key_mask = (jnp.asarray(filled)[source % cells] & (source < total)[:, None]).reshape(bins, cells, -1)
    return BinLayout(kept, source, target, frame, key_mask)


def switch_bins(kept: Kept, refill: bool, filled: np.ndarray | None) -> tuple[jax.Array, list[Callable[[], BinLayout]]]:
    """(index of the smallest rung that fits, one function per rung that makes its layout)."""
    plan = plan_bins(kept, refill)
    batch, frames, cells = kept.mask.shape
    rungs = ladder(batch * frames, batch * kept.ids.shape[-1], cells)
    index = jnp.searchsorted(jnp.asarray(rungs), plan.used)  # []
    return index, [functools.partial(bin_layout, kept, plan, rung, filled) for rung in rungs]
