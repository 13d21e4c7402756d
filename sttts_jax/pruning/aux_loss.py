"""The temporal loss: scores learn how much a cell changed since the frame before (STTS, arXiv 2603.18004, 3)."""

import jax
import jax.numpy as jnp

from sttts_jax.pruning.frame_rows import CELL_AXES, FrameRows


def neighbour_cosine(cells: jax.Array) -> jax.Array:
    """Cosine of each cell's W * D numbers with the same cell one frame earlier.

    [..., F, C, W, D] -> float32 [..., F - 1, C].
    The authors' code forms the full (F C) x (F C) similarity matrix and reads this diagonal of it.
    """
    x = cells.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=(-2, -1)), 1e-24))  # [..., F, C]
    dot = jnp.sum(x[..., 1:, :, :, :] * x[..., :-1, :, :, :], axis=(-2, -1))  # [..., F - 1, C]
    return dot / (norm[..., 1:, :] * norm[..., :-1, :])


def counted_frames(rows: FrameRows, across_items: bool) -> jax.Array:
    """bool [..., F - 1]: which of the frames 1.. of each row the temporal loss compares with the frame before."""
    counted = rows.video if across_items else rows.droppable  # [..., F]
    return counted[..., 1:]


def temporal_loss(
    logits: jax.Array, cells: jax.Array, rows: FrameRows, *, across_items: bool = False, stop_gradient: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Sum over cells of (sigmoid(logit) - (1 - cosine))^2 and the number of cells, both float32 scalars.

    logits [..., F, C], cells [..., F, C, W, D] after block `prune_after`. Frames 1.. of every video count; with
    `across_items` also the first frame of a later video of the row, compared with the frame before it, as in the
    authors' code. `stop_gradient` keeps the loss from reaching the features (the authors let it). Sum and count are
    apart so that the mean is over the global batch.
    """
    rows.check_shape("logits", logits.shape, "C")
    rows.check_shape("cells", cells.shape, CELL_AXES)
    if logits.shape[-1] != cells.shape[-3]:
        raise ValueError(
            f"logits score {logits.shape[-1]} cells a frame, but cells of shape {cells.shape} hold {cells.shape[-3]}; "
            "give the cells that the scorer read"
        )
    if logits.shape[-2] < 2:
        return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    cosine = neighbour_cosine(jax.lax.stop_gradient(cells) if stop_gradient else cells)  # [..., F - 1, C]
    counted = counted_frames(rows, across_items)  # [..., F - 1]
    weight = jnp.broadcast_to(counted[..., None], cosine.shape).astype(jnp.float32)  # [..., F - 1, C]
    error = jax.nn.sigmoid(logits[..., 1:, :]) - (1 - cosine)  # [..., F - 1, C]
    return jnp.sum(weight * error * error), jnp.sum(weight)
