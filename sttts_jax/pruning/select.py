"""Scores -> kept cells: exact count, global over each video, first frames whole, static shape (STTS, 2603.18004)."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.ops.compact import places, set_positions
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.frame_rows import FrameRows


class Kept(NamedTuple):
    """The survivors of one or more rows, three ways. R = F * C cells of a row, K the static capacity.

    mask     bool  [..., F, C]
    ids      int32 [..., K]     flat cell ids f * C + c in rising order; R after the last survivor
    inverse  int32 [..., R]     where a cell went in the stream, K if it was dropped
    """

    mask: jax.Array
    ids: jax.Array
    inverse: jax.Array


def select_cells(scores: jax.Array, rows: FrameRows, fraction: Fraction, capacity: int) -> Kept:
    """Keeps the n_kept(T) best cells of every video and all cells of everything else.

    scores float32 [..., F, C], higher is better, any scale; NaN ranks last; ties break by position, earlier cells
    first. A first frame is never dropped. `capacity` K must hold the survivors of every row: `budget.row_capacity`
    says how many they can be, else the tail of the stream is cut. Raises ValueError for shapes that do not fit, and for
    a capacity too small for the rows where these are known on the host, or for one frame where they are traced.
    """
    rows.check_shape("scores", scores.shape, "C")
    lead, (frames, cells) = scores.shape[:-2], scores.shape[-2:]
    most = _most_kept(rows, fraction, cells)
    if capacity < most:
        raise ValueError(
            f"capacity={capacity} would cut survivors: a row keeps {most} cells at fraction={fraction}; "
            f"take row_capacity({frames}, fraction, {cells}, items)"
        )
    best = jnp.where(rows.first[..., None], jnp.inf, jnp.where(jnp.isnan(scores), -jnp.inf, scores.astype(jnp.float32)))
    kept = _n_kept_of_item(rows, fraction, cells)
    one = _select_row
    for _ in lead:
        one = jax.vmap(one, in_axes=(0, 0, 0, None))
    return one(best, rows, kept, capacity)


def _most_kept(rows: FrameRows, fraction: Fraction, cells: int) -> int:
    """Survivors of the fullest row; of a lone frame where the rows are traced, and so known on the device alone."""
    if any(isinstance(x, jax.core.Tracer) for x in rows):
        return cells
    frames, most = rows.item.shape[-1], 0
    items, prunable = (np.asarray(x).reshape(-1, frames) for x in rows)  # [B, F] each
    for item, video in zip(items, prunable, strict=True):
        mine = [item == i for i in np.unique(item[item >= 0])]  # bool [F] an item
        most = max(most, sum(n_kept(int(m.sum()), fraction if video[m].all() else 0, cells) for m in mine))
    return most


def _n_kept_of_item(rows: FrameRows, fraction: Fraction, cells: int) -> jax.Array:
    """int32 [..., F]: survivors of the item that each frame belongs to, by the host's own table: both always agree."""
    frames = rows.item.shape[-1]
    size = jnp.sum((rows.item[..., :, None] == rows.item[..., None, :]) & rows.valid[..., None, :], axis=-1)  # [..., F]
    table = np.array([n_kept(t, fraction, cells) for t in range(frames + 1)], np.int32)  # [F + 1]
    return jnp.where(rows.video, jnp.asarray(table)[size], jnp.where(rows.valid, size * cells, 0)).astype(jnp.int32)


def _select_row(best: jax.Array, rows: FrameRows, kept: jax.Array, capacity: int) -> Kept:
    """best [F, C], rows [F], kept int32 [F]: survivors of the item of each frame."""
    frames, cells = best.shape
    mask = _best_of_items(_ranks(best), rows, kept)  # [F, C]
    place = places(mask)  # [F, C]
    inverse = jnp.where(mask & (place < capacity), place, capacity)  # [F, C]
    return Kept(mask, set_positions(mask, capacity), inverse.reshape(frames * cells))


def _ranks(x: jax.Array) -> jax.Array:
    """uint32 numbers in the order of the floats x, which hold no NaN; equal ones for 0 and -0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _best_of_items(ranks: jax.Array, rows: FrameRows, kept: jax.Array) -> jax.Array:
    """bool [F, C]: the `kept` cells of highest rank of every item, the earlier ones of equals; ranks uint32 [F, C].

    The rank that the last of them has is found bit by bit, as a sort would take a TPU's compiler half a minute.
    """
    frames = ranks.shape[0]
    same = (rows.item[:, None] == rows.item) & rows.valid  # [F, F]

    def of_items(chosen: jax.Array, frame: jax.Array) -> jax.Array:
        """int32 [F]: how many of bool [F, C] are chosen in those frames, bool [F, F], that count for each."""
        return jnp.sum(jnp.where(frame, jnp.sum(chosen, axis=1, dtype=jnp.int32), 0), axis=1)

    def add_bit(i: jax.Array, last: jax.Array) -> jax.Array:
        higher = last | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))  # [F]
        return jnp.where(of_items(ranks >= higher[:, None], same) >= kept, higher, last)

    last = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros(frames, jnp.uint32))[:, None]  # [F, 1]
    above, equal = ranks > last, ranks == last  # [F, C]
    room = kept - of_items(above, same) - of_items(equal, jnp.tril(same, -1))  # [F], for equals of this frame
    before = jnp.cumsum(equal, axis=1, dtype=jnp.int32) - equal  # [F, C]
    return above | (equal & (before < room[:, None]))
