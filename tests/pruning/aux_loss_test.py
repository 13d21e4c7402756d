"""The temporal loss, against the full similarity matrix that the paper describes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.pruning.aux_loss import neighbour_cosine, temporal_loss
from sttts_jax.pruning.frame_rows import FrameRows
from tests.pruning.cases import frame_rows

FRAMES, CELLS, WINDOW, WIDTH = 6, 4, 3, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, FRAMES, CELLS, WINDOW, WIDTH)).astype(np.float32)
LOGITS = RNG.standard_normal((2, FRAMES, CELLS)).astype(np.float32)
MIX = ([("video", 3), ("video", 2)], [("image", 1), ("video", 4)])
ROWS = frame_rows(*MIX, frames=FRAMES)
# Frames whose cells count: with its own predecessor, and with whatever frame stands before it.
OWN = np.asarray([[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0]], bool)
ACROSS = np.asarray([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]], bool)


def _matrix() -> np.ndarray:
    """The (F C) x (F C) cosines of every row in float64, read off the neighbour diagonal: [2, F - 1, C]."""
    flat = X.reshape(2, FRAMES * CELLS, -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=-1, keepdims=True)
    full = np.einsum("rid,rjd->rij", flat, flat)
    return np.stack([np.diagonal(full, offset=-CELLS, axis1=1, axis2=2)])[0].reshape(2, FRAMES - 1, CELLS)


def test_cosine_is_the_diagonal_of_the_full_matrix() -> None:
    np.testing.assert_allclose(neighbour_cosine(jnp.asarray(X)), _matrix(), atol=1e-6)


@pytest.mark.parametrize("across", [False, True])
def test_formula(across: bool) -> None:
    total, count = temporal_loss(jnp.asarray(LOGITS), jnp.asarray(X), ROWS, across_items=across)
    score = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    error = (score[:, 1:] - (1 - _matrix())) ** 2
    counted = (ACROSS if across else OWN)[:, 1:]
    assert count == counted.sum() * CELLS
    np.testing.assert_allclose(total, error[counted].sum(), rtol=1e-5)


def test_scores_that_say_how_much_changed_cost_nothing() -> None:
    """Zero exactly where s = 1 - cosine, and the gradient leads there."""
    wanted = np.clip(1 - _matrix(), 1e-3, 1 - 1e-3)
    logits = np.zeros_like(LOGITS)
    logits[:, 1:] = np.log(wanted / (1 - wanted))
    exact = (np.abs(1 - _matrix() - wanted) < 1e-9) & OWN[:, 1:, None]
    grad = jax.grad(lambda z: temporal_loss(z, jnp.asarray(X), ROWS)[0])
    assert np.abs(np.asarray(grad(jnp.asarray(logits)))[:, 1:][exact]).max() < 1e-5
    below, above = (np.asarray(grad(jnp.asarray(logits + d)))[:, 1:][exact] for d in (-0.5, 0.5))
    assert (below < 0).all() and (above > 0).all()


@pytest.mark.parametrize("stop", [False, True])
def test_stop_gradient_keeps_it_out_of_the_features(stop: bool) -> None:
    def loss(z: jax.Array, x: jax.Array) -> jax.Array:
        return temporal_loss(z, x, ROWS, stop_gradient=stop)[0]

    dz, dx = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(LOGITS), jnp.asarray(X))
    assert (np.asarray(dz)[OWN] != 0).all() and not np.asarray(dz)[~OWN].any()
    reached = np.asarray(dx != 0).any(axis=(2, 3, 4))
    # A frame is reached when it or its successor counts.
    expected = OWN | np.pad(OWN[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_array_equal(reached, np.zeros_like(OWN) if stop else expected)


def test_a_loss_alone_moves_the_level_between_frames() -> None:
    """What the task loss cannot do: the gradients of a frame's logits do not sum to zero."""
    g = jax.grad(lambda z: temporal_loss(z, jnp.asarray(X), ROWS)[0])(jnp.asarray(LOGITS))
    assert (np.abs(np.asarray(g).sum(axis=-1)[OWN]) > 1e-3).all()


@pytest.mark.parametrize("shift", [0.0, -20.0, -110.0, 30.0])
def test_finite_for_saturated_scores_and_empty_features(shift: float) -> None:
    x = jnp.asarray(X).at[:, 1].set(0.0)
    grads = jax.grad(lambda z, x: temporal_loss(z, x, ROWS)[0], argnums=(0, 1))(jnp.asarray(LOGITS + shift), x)
    assert all(jnp.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("items", [[], [("image", 3)], [("video", 1)]])
def test_rows_without_a_second_frame_count_nothing(items: list) -> None:
    rows = FrameRows(*(x for x in frame_rows(items, frames=FRAMES)))
    total, count = temporal_loss(jnp.asarray(LOGITS[:1]), jnp.asarray(X[:1]), rows)
    assert total == 0 and count == 0


def test_a_row_of_one_frame() -> None:
    total, count = temporal_loss(jnp.zeros((1, 1, CELLS)), jnp.asarray(X[:1, :1]), frame_rows([("video", 1)], frames=1))
    assert total == 0 and count == 0


@pytest.mark.parametrize(
    ("logits", "x", "sentence"),
    [
        (LOGITS[0], X, r"logits has shape \(6, 4\), but rows of shape \(2, 6\) need \(2, 6, C\)"),
        (LOGITS[:, 1:], X, r"logits has shape \(2, 5, 4\).*give both the same rows and frames"),
        (LOGITS, X[:, 1:], r"cells has shape \(2, 5, 4, 3, 5\).*need \(2, 6, C, W, D\); give both the same rows"),
        (LOGITS, X.reshape(2, FRAMES, -1, WIDTH), r"cells has shape .*; put patches \[..., F, N, D\] into cells first"),
        (
            LOGITS[..., :3],
            X,
            r"logits score 3 cells a frame, but cells of shape .* hold 4; give the cells that the scorer",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits: np.ndarray, x: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(lambda z, x: temporal_loss(z, x, ROWS), logits, x)
