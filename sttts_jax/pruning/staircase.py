"""The default packing: an exact-length stream, and slots of guaranteed sizes for attention.

Every dense op after the drop runs on the stream [B, K, W, D]: no padding at all, whatever the scores. Attention needs
frames, so each frame's survivors are gathered into a slot. Sort the frames of a row by survivors: the first holds at
most C cells, and the j-th of the others at most (K - C) / j, because j frames with more would exceed K. So the sizes of
the sorted slots are known before any score is, and a few classes of slots ("stairs") fit every distribution: no
overflow, no fallback, one compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sttts_jax.ops.attention.frames import attend_frames
from sttts_jax.ops.token_moves import heads_to_tokens, tokens_to_heads
from sttts_jax.pruning.pack import check_filled, check_patches, check_survivors, pack_cells, take_batch
from sttts_jax.pruning.select import Kept

SLOT_KERNELS = ("xla", "gpu")


@functools.cache
def stairs(frames: int, capacity: int, cells: int, classes: int = 4) -> tuple[tuple[int, int], ...]:
    """The cheapest split of `frames` sorted slots into at most `classes` runs (number of slots, cells of a slot).

    Cost is the attention work, the sum of slots * cells^2. Exact dynamic programming on the host.

    >>> stairs(16, 648, 81)
    ((8, 81), (2, 70), (3, 56), (3, 43))
    """
    # caps[j]: the most cells of the sorted slot j. best[end]: of the first `end` slots, at first in one run.
    caps = [cells] + [min(cells, max(capacity - cells, 0) // j) for j in range(1, frames)]
    best: list[_Split] = [(0, ())] + [(end * cells * cells, ((end, cells),)) for end in range(1, frames + 1)]
    for _ in range(classes - 1):
        best = [_with_one_more_run(best, caps, end) for end in range(frames + 1)]
    return tuple(run for run in best[frames][1] if run[1] > 0)


_Split = tuple[int, tuple[tuple[int, int], ...]]  # cost, runs


def _with_one_more_run(best: list[_Split], caps: list[int], end: int) -> _Split:
    """The cheapest of what the first `end` slots have, and of that plus a run of slots start .. end - 1."""
    cheapest = best[end]
    for start in range(1, end):
        cost, runs = best[start]
        cost += (end - start) * caps[start] ** 2
        if cost < cheapest[0]:
            cheapest = (cost, (*runs, (end - start, caps[start])))
    return cheapest


@struct.dataclass
class StreamLayout:
    """The stream and its slots. Z = sum of slots * cells over the stairs; every block uses the same maps.

    kept      the survivors
    slots     int32 [B, Z]       stream position in each slot place, K if the place is empty
    places    int32 [B, K]       slot place of each stream position, Z if there is none
    counts    int32 [B, F]       survivors of the frames, sorted falling
    key_mask  bool [B, Z, W] or None     filled patches, only when the cell does not divide the grid
    """

    kept: Kept
    slots: jax.Array
    places: jax.Array
    counts: jax.Array
    key_mask: jax.Array | None
    stairs: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)
    kernels: str = struct.field(pytree_node=False, default="xla")

    def pack(self, x: jax.Array) -> jax.Array:
        """[B, F, C, W, D] -> the stream [B, K, W, D]."""
        check_patches(x, self.kept.mask.shape)
        return pack_cells(x, self.kept)

    def attend(self, qkv: jax.Array) -> jax.Array:
        """[B, K, W, 3, H, d] -> [B, K, W, H, d]: to the slots, attention in each run of stairs, and back."""
        slots = take_batch(tokens_to_heads(qkv), self.slots, self.places)  # [B, Z, W, 3, H, d]
        batch, window, tail = slots.shape[0], slots.shape[2], slots.shape[4:]
        outs, place, frame = [], 0, 0
        for number, cells in self.stairs:
            end = place + number * cells
            # n slots of c cells each.
            part = slots[:, place:end].reshape(batch, number, cells * window, 3, *tail)  # [B, n, c*W, 3, H, d]
            mask = None
            if self.key_mask is not None:
                mask = self.key_mask[:, place:end].reshape(batch, number, cells * window)  # [B, n, c*W]
            q, k, v = (part[..., i, :, :] for i in range(3))  # [B, n, c*W, H, d] each
            counts = self.counts[:, frame : frame + number] * window  # [B, n]
            out = attend_frames(q, k, v, key_mask=mask, counts=counts, kernels=self.kernels)
            outs.append(out.reshape(batch, number * cells, window, *tail))  # [B, n*c, W, H, d]
            place, frame = end, frame + number
        return heads_to_tokens(take_batch(jnp.concatenate(outs, axis=1), self.places, self.slots))

    def stream(self, tokens: jax.Array) -> jax.Array:
        """[B, K, W, D], as it is."""
        return tokens


def stream_layout(kept: Kept, filled: np.ndarray | None = None, classes: int = 4, kernels: str = "xla") -> StreamLayout:
    """Maps of a batch of rows; `filled` bool [C, W]: the patches of a cell that exist (None: all).

    `kernels`: "xla", or "gpu", which skip what a frame does not fill, so that one class of slots is enough. Raises
    ValueError for others, and for survivors that no layout holds.
    """
    check_survivors(kept)
    check_filled(kept, filled)
    if kernels not in SLOT_KERNELS:
        raise ValueError(f"slots take the kernels {' or '.join(SLOT_KERNELS)}, not {kernels!r}; see pruning.layout")
    frames, cells = kept.mask.shape[-2:]
    runs = stairs(frames, kept.ids.shape[-1], cells, 1 if kernels == "gpu" else classes)
    slots, places, counts = jax.vmap(functools.partial(_row_maps, runs=runs))(kept)  # [B, Z], [B, K], [B, F]
    key_mask = None if filled is None else _filled_slots(kept, slots, filled)
    return StreamLayout(kept, slots, places, counts, key_mask, runs, kernels)


def _filled_slots(kept: Kept, slots: jax.Array, filled: np.ndarray) -> jax.Array:
    """bool [B, Z, W]: the patches of each slot place that exist."""
    frames, cells = kept.mask.shape[-2:]
    cell = jnp.where(kept.ids < frames * cells, kept.ids % cells, cells)  # [B, K], C after the last survivor
    cell = jnp.concatenate([cell, jnp.full_like(cell[:, :1], cells)], axis=1)  # [B, K+1], C for an empty place
    table = jnp.asarray(np.concatenate([filled, np.zeros_like(filled[:1])]))  # [C+1, W]
    return table[jnp.take_along_axis(cell, slots, axis=1)]


def _row_maps(kept: Kept, runs: tuple[tuple[int, int], ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(slots [Z], places [K], counts [F]) of one row, as in StreamLayout; N slots in all."""
    frames, cells = kept.mask.shape
    capacity = kept.ids.shape[0]
    counts = kept.mask.sum(axis=-1, dtype=jnp.int32)  # [F]
    starts = jnp.cumsum(counts) - counts  # [F], the stream position of each frame's first survivor
    order = jnp.argsort(-counts, stable=True)  # [F], the frame in each rank
    rank = jnp.argsort(order)  # [F], the rank of each frame

    number = sum(n for n, _ in runs)
    caps = np.repeat([c for _, c in runs], [n for n, _ in runs])  # [N], cells of each slot
    base = np.concatenate([[0], np.cumsum(caps)]).astype(np.int32)  # [N+1], the first place of each slot, and Z
    slot_rank = np.repeat(np.arange(number), caps)  # [Z], the slot of each place
    offset = jnp.asarray(np.arange(base[-1]) - base[slot_rank])  # [Z], the place inside its slot
    frame = order[slot_rank]  # [Z]
    slots = jnp.where(offset < counts[frame], starts[frame] + offset, capacity)  # [Z]

    # Frames beyond the stairs hold nothing: their base is never read.
    table = jnp.asarray(np.concatenate([base[:-1], np.full(frames - number, base[-1])]).astype(np.int32))  # [F]
    frame = jnp.minimum(kept.ids // cells, frames - 1)  # [K]
    places = table[rank[frame]] + jnp.arange(capacity) - starts[frame]  # [K]
    places = jnp.where(kept.ids < frames * cells, places, base[-1])
    return slots.astype(jnp.int32), places.astype(jnp.int32), counts[order]
