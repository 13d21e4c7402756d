"""Survivors <-> dense arrays: gathers whose transpose is a gather."""

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.ops.attention.tpu_blocks import LANES
from sttts_jax.ops.token_moves import channels_to_tokens, tokens_to_channels
from sttts_jax.pruning.select import Kept


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """x[index] along axis 0, zero where index == len(x); index [I] and inverse [len(x)] undo each other (I: "nowhere").

    The gradient is take_rows(g, inverse, index): a gather, where plain autodiff would scatter-add.
    """
    if x.ndim > 2:
        return jnp.take(x, index, axis=0, mode="fill", fill_value=0)
    # A batch of vectors is gathered as one list of them. Where those of a row begin inside of a tile of a TPU, taking
    # the list apart keeps its compiler busy for minutes; so whole tiles, and the rest is cut off.
    whole = jnp.pad(index, (0, -len(index) % LANES), constant_values=len(x))
    return jnp.take(x, whole, axis=0, mode="fill", fill_value=0)[: len(index)]


def _take_rows_fwd(x, index, inverse):
    return take_rows(x, index, inverse), (index, inverse)


def _take_rows_bwd(maps, g):
    index, inverse = maps
    return take_rows(g, inverse, index), None, None


take_rows.defvjp(_take_rows_fwd, _take_rows_bwd)

# Rows of a batch are packed each by itself: vmap keeps the gathers local, so a sharded batch needs no collective.
take_batch = jax.vmap(take_rows)


def take_tokens(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """`take_batch` of x [B, tokens, .., D] whose tokens may lie over devices, before and after."""
    if x.ndim < 3:
        return take_batch(x, index, inverse)
    return channels_to_tokens(take_batch(tokens_to_channels(x), index, inverse))


def flatten_cells(x: jax.Array) -> jax.Array:
    """[B, F, C, ...] -> [B, F * C, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def pack_cells(x: jax.Array, kept: Kept) -> jax.Array:
    """Survivors of x [B, F, C, ...] as a dense stream [B, K, ...] in frame order, zero after the last.

    Raises ValueError for an x of other rows, frames or cells than `kept`.
    """
    check_survivors(kept)
    if x.shape[:3] != kept.mask.shape:
        raise ValueError(
            f"x has shape {x.shape}, but the survivors are of [B, F, C] = {kept.mask.shape}; "
            "if it holds patches, put them into cells first with CellGrid.to_cells"
        )
    return take_tokens(flatten_cells(x), kept.ids, kept.inverse)


def unpack_cells(stream: jax.Array, kept: Kept) -> jax.Array:
    """[B, K, ...] -> [B, F, C, ...] with zeros in the dropped cells: the transpose of `pack_cells`.

    Raises ValueError for a stream of other rows or another capacity than `kept`.
    """
    check_survivors(kept)
    if stream.shape[:2] != kept.ids.shape:
        raise ValueError(f"the stream has shape {stream.shape}, but the survivors are [B, K] = {kept.ids.shape}")
    frames, cells = kept.mask.shape[-2:]
    flat = take_batch(stream, kept.inverse, kept.ids)  # [B, F*C, ...]
    return flat.reshape(flat.shape[0], frames, cells, *flat.shape[2:])


def check_survivors(kept: Kept) -> None:
    """Raises ValueError for survivors that no layout holds: those without a batch axis."""
    if kept.mask.ndim != 3:
        raise ValueError(
            f"a layout is of a batch of rows, with survivors [B, F, C], but these are {kept.mask.shape}; "
            "select from scores [B, F, C], with B = 1 for a single row"
        )


def check_filled(kept: Kept, filled: np.ndarray | None) -> None:
    """Raises ValueError where `filled` is not [C, W] of these survivors."""
    if filled is not None and (filled.ndim != 2 or len(filled) != kept.mask.shape[-1]):
        raise ValueError(
            f"filled has shape {filled.shape}, but the survivors are of {kept.mask.shape[-1]} cells a frame; give "
            "CellGrid.filled of their grid"
        )


def check_patches(x: jax.Array, shape: tuple[int, ...] = ()) -> None:
    """Raises ValueError unless x is [B, F, C, W, D] and begins with `shape`, as many of these sizes as are known."""
    if x.ndim != 5 or x.shape[: len(shape)] != shape:
        sizes = f" that begins with {shape}" if shape else ""
        raise ValueError(
            f"pack wants patches in cells, [B, F, C, W, D]{sizes}, but x has shape {x.shape}; "
            "put patches into cells first with CellGrid.to_cells"
        )
