"""Scores -> attention bias: the only way by which the task loss reaches the scorer (STTS, arXiv 2603.18004, 3)."""

import jax
import jax.numpy as jnp

from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.frame_rows import FrameRows

FLOOR = 0.1353352832366127  # e^-2: the bias of the least wanted cell is -2
RESCALES = ("row", "frame", "affine", "none")


def soft_bias(logits: jax.Array, rows: FrameRows, grid: CellGrid, rescale: str = "affine") -> jax.Array:
    """Key bias of the block before the drop: log of the rescaled score, one a cell, 0 for first frames and non-videos.

    logits float32 [..., F, C] -> float32 [..., F, C], added to the attention logits of every query and head at all
    keys of a cell. With s = sigmoid(logits) and a = e^-2:

      "affine"  log(a + (1 - a) s)                                    in [-2, 0], every cell by itself
      "row"     log(a + (s - min) (1 - a) / (max - min + 1e-6))       min, max over a row of the grid: the authors' code
      "frame"   the same with min, max over the frame                 as the paper's text reads
      "none"    log s                                                 in (-inf, 0)

    The min-max forms couple cells, and their gradient grows as 1 / (max - min): a scorer that is nearly constant, as at
    initialisation, makes it explode. Use "row" with weights that were trained with it.
    """
    if rescale not in RESCALES:
        raise ValueError(f"rescale={rescale!r} is unknown; choose one of {', '.join(RESCALES)}")
    rows.check_shape("logits", logits.shape, "C")
    if logits.shape[-1] != grid.cells:
        raise ValueError(
            f"logits score {logits.shape[-1]} cells a frame, but a grid of {grid.grid} patches in cells of {grid.cell} "
            f"has {grid.cells}; give the CellGrid that made the cells"
        )
    if rescale == "none":
        value = jax.nn.log_sigmoid(logits)
    else:
        score = jax.nn.sigmoid(logits)
        if rescale != "affine":
            score = _min_max(score, grid.shape[1] if rescale == "row" else grid.cells)
        value = jnp.log(FLOOR + (1 - FLOOR) * score)
    return jnp.where(rows.droppable[..., None], value, 0.0)


def _min_max(score: jax.Array, group: int) -> jax.Array:
    grouped = score.reshape(*score.shape[:-1], -1, group)  # [..., F, groups, cells of a group]
    low, high = grouped.min(axis=-1, keepdims=True), grouped.max(axis=-1, keepdims=True)  # [..., F, groups, 1]
    return ((grouped - low) / (high - low + 1e-6)).reshape(score.shape)
