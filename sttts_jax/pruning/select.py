"""Scores -> kept cells: exact count, global over each video, first frames whole, static shape (STTS, 2603.18004)."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    total = frames * cells
    ids = jnp.arange(total, dtype=jnp.int32)  # [R]
    item = jnp.repeat(jnp.where(rows.valid, rows.item, frames).astype(jnp.int32), cells)  # [R], F: padding
    # Sorted by item, then by falling score, then by position: an item's survivors are the head of its own stretch.
    item, _, order = jax.lax.sort((item, -best.reshape(-1), ids), num_keys=2, is_stable=True)  # [R] each
    start = jax.lax.cummax(jnp.where(jnp.diff(item, prepend=-1) != 0, ids, 0))  # [R], where its item's stretch begins
    alive = (item < frames) & (ids - start < jnp.repeat(kept, cells)[order])  # [R], in the sorted order
    mask = jax.lax.sort((order, alive.astype(jnp.int32)), num_keys=1)[1].astype(bool)  # [R], in the order of cells
    stream = jnp.sort(jnp.where(mask, ids, total))  # [R], survivors first; cut or padded to [K]:
    stream = stream[:capacity] if capacity <= total else jnp.pad(stream, (0, capacity - total), constant_values=total)
    place = jnp.cumsum(mask, dtype=jnp.int32) - 1  # [R]
    inverse = jnp.where(mask & (place < capacity), place, capacity)  # [R]
    return Kept(mask.reshape(frames, cells), stream, inverse)
