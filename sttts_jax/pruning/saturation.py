"""Scores that have run to one end of the sigmoid, where no gradient brings them back."""

import jax
import jax.numpy as jnp

from sttts_jax.pruning.frame_rows import FrameRows

MARGIN = 1e-3


def saturated_share(scores: jax.Array, rows: FrameRows) -> jax.Array:
    """Share of the cells of videos, first frames left out, whose score is within 0.001 of 0 or 1; float32 [].

    scores float32 [..., F, C] in [0, 1]: the sigmoid of the scorer's logits. There the slope of the sigmoid, by which
    bias and temporal loss both reach the scorer, is under 0.001. Cells where nothing moves belong at 0, so some are no
    fault; where nearly all are, the scorer has stopped to learn. 0 where no cell counts.
    """
    rows.check_shape("scores", scores.shape, "C")
    counted = jnp.broadcast_to(rows.droppable[..., None], scores.shape)  # [..., F, C]
    ended = jnp.minimum(scores, 1 - scores) < MARGIN  # [..., F, C]
    return jnp.sum(counted & ended, dtype=jnp.float32) / jnp.maximum(jnp.sum(counted, dtype=jnp.float32), 1.0)
