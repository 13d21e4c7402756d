"""Rankings without a scorer that share its exact budget, so that accuracy and speed compare (STTS, 2603.18004, 4)."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.pruning.aux_loss import neighbour_cosine
from sttts_jax.pruning.budget import n_drop
from sttts_jax.pruning.frame_rows import CELL_AXES, FrameRows

THRESHOLD = 0.85
# Cosines lie in [-1, 1]: exempt cells rank above every other, and among themselves by how much they changed.
EXEMPT = 4.0


def random_scores(rng: jax.Array, rows: FrameRows, cells: int) -> jax.Array:
    """`random`: uniform over the video's cells; float32 [..., F, C]."""
    return jax.random.uniform(rng, (*rows.item.shape, cells))


def easy_scores(cells: jax.Array) -> jax.Array:
    """`easy`: the cells most similar to the same cell of the previous frame go first.

    cells [B, F, C, W, D] -> float32 [B, F, C]. A frame whose mean similarity is under 0.85 is exempt: its cells go
    last. Raises ValueError for patches that are not in cells.
    """
    if cells.ndim != 5:
        raise ValueError(
            f"cells has shape {cells.shape}, but easy_scores wants [B, F, C, W, D]; put patches into cells first with "
            "CellGrid.to_cells"
        )
    similar = neighbour_cosine(cells)  # [..., F - 1, C]
    similar = jnp.pad(similar, [(0, 0)] * (similar.ndim - 2) + [(1, 0), (0, 0)])  # [..., F, C]
    return jnp.where(similar.mean(axis=-1, keepdims=True) < THRESHOLD, EXEMPT, 0.0) - similar


def reference_tracking_scores(cells: jax.Array, rows: FrameRows, fraction: Fraction) -> jax.Array:
    """`reference_tracking`: the cells most similar to a reference that follows the scene go first.

    cells [..., F, C, W, D] -> float32 [..., F, C]. Every cell has a reference vector. A frame whose mean similarity to
    the references is under the threshold becomes the new reference and is exempt; in other frames only the cells under
    the threshold refresh theirs, and the cells at or over it are the candidates to drop. A video with too few
    candidates for its budget is tracked again with the threshold (0.85 at first) lower by 0.05, at most five times;
    what is then still missing is taken from the most similar rest.
    """
    rows.check_shape("cells", cells.shape, CELL_AXES)
    run = _track_row
    for _ in cells.shape[:-4]:
        run = jax.vmap(run, in_axes=(0, 0, None))
    return run(cells, rows, fraction)


def _track_row(cells: jax.Array, rows: FrameRows, fraction: Fraction) -> jax.Array:
    frames, count = cells.shape[:2]
    vectors = cells.reshape(frames, count, -1).astype(jnp.float32)  # [F, C, W * D]
    vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    tries = [_track(vectors, rows.first, THRESHOLD - 0.05 * i) for i in range(6)]
    scores, candidates = (jnp.stack(x) for x in zip(*tries, strict=True))  # [6, F, C], [6, F, C]

    same = (rows.item[:, None] == rows.item[None, :]) & rows.valid[None, :]  # [F, F]
    table = jnp.asarray(np.array([n_drop(t, fraction, count) for t in range(frames + 1)], np.int32))  # [F + 1]
    budget = table[same.sum(axis=-1)]  # [F], of the video of each frame
    found = jnp.einsum("fg,ig->if", same.astype(jnp.int32), candidates.sum(axis=-1))  # [6, F]
    enough = (found >= budget).at[-1].set(True)  # [6, F]
    return jnp.take_along_axis(scores, jnp.argmax(enough, axis=0)[None, :, None], axis=0)[0]


def _track(vectors: jax.Array, first: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """vectors [F, C, W * D] of length one, first bool [F] -> (scores float32, candidates bool) [F, C]."""

    def step(reference, frame):
        vector, fresh = frame  # [C, W * D], []
        similar = jnp.sum(reference * vector, axis=-1)  # [C]
        exempt = fresh | (similar.mean() < threshold)  # []
        refresh = exempt | (similar < threshold)  # [C]
        score = jnp.where(refresh, EXEMPT, 0.0) - similar  # [C]
        return jnp.where(refresh[:, None], vector, reference), (score, ~refresh)

    return jax.lax.scan(step, vectors[0], (vectors, first))[1]
