"""Saturation: which scores count, and that those are the ones that no gradient moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.pruning.aux_loss import temporal_loss
from sttts_jax.pruning.saturation import saturated_share
from tests.pruning.cases import frame_rows

FRAMES, CELLS = 4, 5
ROWS = frame_rows([("video", 3)], [("image", 1), ("video", 2)], frames=FRAMES)
COUNTED = np.asarray([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, FRAMES, CELLS, 2, 3)), jnp.float32)


@pytest.mark.parametrize("end", [0.0, 0.0009, 0.9991, 1.0])
def test_cells_of_later_frames_of_videos_count(end: float) -> None:
    scores = np.where(COUNTED[..., None], 0.5, end).astype(np.float32) * np.ones((1, 1, CELLS), np.float32)
    assert saturated_share(jnp.asarray(scores), ROWS) == 0
    scores[COUNTED] = end
    assert saturated_share(jnp.asarray(scores), ROWS) == 1
    scores[0, 1] = 0.002
    np.testing.assert_allclose(saturated_share(jnp.asarray(scores), ROWS), 2 / 3)


def test_rows_without_a_later_frame_have_none() -> None:
    assert saturated_share(jnp.zeros((1, FRAMES, CELLS)), frame_rows([("video", 1), ("image", 2)], frames=FRAMES)) == 0


@pytest.mark.parametrize("logit", [-30.0, -7.0, 7.0, 30.0])
def test_what_it_counts_has_lost_its_gradient(logit: float) -> None:
    logits = jnp.full((2, FRAMES, CELLS), logit)
    slope = jax.grad(lambda z: temporal_loss(z, X, ROWS)[0])
    assert saturated_share(jax.nn.sigmoid(logits), ROWS) == 1
    alive = np.abs(np.asarray(slope(jnp.zeros_like(logits)))[COUNTED]).max()
    assert np.abs(np.asarray(slope(logits))).max() < 0.02 * alive


def test_scores_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="scores has shape .*; give both the same rows and frames"):
        saturated_share(jnp.zeros((FRAMES, CELLS)), ROWS)
