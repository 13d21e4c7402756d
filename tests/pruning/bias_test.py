"""The soft bias: its forms, its bounds, and how the task loss comes back through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.pruning.bias import RESCALES, soft_bias
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.layout import WholeFrames
from tests.pruning.cases import frame_rows

GRID = CellGrid((6, 6), (2, 2))
FRAMES, CELLS = 5, GRID.cells
ROWS = frame_rows([("video", 3), ("image", 1)], [("video", 2), ("video", 3)], frames=FRAMES)
# Cells that carry a bias: frames of videos that are not the first.
BIASED = np.asarray([[0, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)
LOGITS = np.random.default_rng(0).standard_normal((2, FRAMES, CELLS)).astype(np.float32)
SHIFTS = [0.0, -20.0, -110.0, 30.0]


def _expected(logits: np.ndarray, rescale: str) -> np.ndarray:
    """The formulas in float64, one cell at a time."""
    a, score = np.exp(-2.0), 1 / (1 + np.exp(-logits.astype(np.float64)))
    out = np.zeros_like(score)
    for row, frame in np.argwhere(BIASED):
        s = score[row, frame].reshape(GRID.shape)
        if rescale == "none":
            value = np.log(s)
        elif rescale == "affine":
            value = np.log(a + (1 - a) * s)
        else:
            axis = 1 if rescale == "row" else (0, 1)
            low, high = s.min(axis=axis, keepdims=True), s.max(axis=axis, keepdims=True)
            value = np.log(a + (s - low) * (1 - a) / (high - low + 1e-6))
        out[row, frame] = value.reshape(-1)
    return out


@pytest.mark.parametrize("rescale", RESCALES)
def test_forms(rescale: str) -> None:
    got = soft_bias(jnp.asarray(LOGITS), ROWS, GRID, rescale)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, _expected(LOGITS, rescale), atol=1e-5)


def test_rows_of_an_oblong_grid_are_rows() -> None:
    grid = CellGrid((4, 6), (2, 2))  # 2 rows of 3 cells
    logits = jnp.asarray([[[0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    bias = soft_bias(logits, frame_rows([("video", 2)], frames=2), grid, "row")[0, 1]
    np.testing.assert_allclose(bias[jnp.array([0, 3])], -2.0, atol=1e-5)  # the least of each row
    np.testing.assert_allclose(bias[jnp.array([2, 5])], 0.0, atol=1e-4)  # the largest of each row


@pytest.mark.parametrize("rescale", ["row", "frame", "affine"])
@settings(deadline=None, max_examples=50)
@given(logits=st.lists(st.floats(-200, 200, width=32), min_size=CELLS, max_size=CELLS))
def test_bounds(rescale: str, logits: list[float]) -> None:
    x = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (2, FRAMES, CELLS))
    bias = np.asarray(_bias_of[rescale](x))
    assert (bias >= -2.0 - 1e-6).all() and (bias <= 1e-6).all()
    assert not bias[~BIASED].any(), "first frames, images and padding carry none"


_bias_of = {rescale: jax.jit(lambda x, rescale=rescale: soft_bias(x, ROWS, GRID, rescale)) for rescale in RESCALES}


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="rescale='softmax' is unknown; choose one of row, frame, affine, none"):
        soft_bias(jnp.asarray(LOGITS), ROWS, GRID, "softmax")


@pytest.mark.parametrize("grid", [CellGrid((6, 6), (3, 3)), CellGrid((8, 8), (2, 2))])
def test_a_grid_of_other_cells_is_refused(grid: CellGrid) -> None:
    with pytest.raises(ValueError, match=f"logits score 9 cells a frame, .* has {grid.cells}; give the CellGrid"):
        soft_bias(jnp.asarray(LOGITS), ROWS, grid)


@pytest.mark.parametrize("logits", [LOGITS[0], LOGITS[:, 1:], LOGITS[..., None]])
def test_logits_of_other_rows_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"logits has shape .* need \(2, 5, C\); give both the same rows and frames"):
        soft_bias(jnp.asarray(logits), ROWS, GRID)


def _qkv(seed: int = 1) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    shape = (2, FRAMES, CELLS, GRID.window)
    qkv, cotangent = rng.standard_normal((*shape, 3, 2, 4)), rng.standard_normal((*shape, 2, 4))
    return jnp.asarray(qkv, jnp.float32), jnp.asarray(cotangent, jnp.float32)


def _task(bias: jax.Array, key_mask: jax.Array | None = None) -> jax.Array:
    qkv, cotangent = _qkv()
    return jnp.sum(WholeFrames(bias, key_mask).attend(qkv) * cotangent)


@pytest.mark.parametrize("rescale", RESCALES)
def test_the_task_loss_reaches_every_logit_and_stays_finite(rescale: str) -> None:
    """Also when all scores have drifted to one end, where the paper's sigmoid is 0 or 1 to float32."""
    grad = jax.jit(jax.grad(lambda z: _task(soft_bias(z, ROWS, GRID, rescale))))
    for shift in SHIFTS:
        g = np.asarray(grad(jnp.asarray(LOGITS + shift)))
        assert np.isfinite(g).all() and np.abs(g).max() < 1e3
        assert not g[~BIASED].any()
        reaches = {"none": True, "affine": shift in (0.0, -20.0)}.get(rescale, shift == 0.0)
        assert not reaches or (g[BIASED] != 0).mean() > (0.5 if rescale == "row" else 0.9)


@pytest.mark.parametrize("rescale", ["row", "frame"])
def test_constant_scores_make_the_min_max_forms_large_but_finite(rescale: str) -> None:
    """The gradient of the min-max forms grows as 1 / (max - min); 1e-6 in the denominator bounds it."""
    grad = jax.jit(jax.grad(lambda z: _task(soft_bias(z, ROWS, GRID, rescale))))
    for shift in SHIFTS:
        g = np.asarray(grad(jnp.full_like(jnp.asarray(LOGITS), shift)))
        assert np.isfinite(g).all() and np.abs(g).max() < 1e7
    assert np.abs(np.asarray(grad(jnp.zeros(LOGITS.shape)))).max() > 1e3, "why affine is the default"


@pytest.mark.parametrize("ragged", [False, True])
def test_the_task_loss_cannot_move_the_level_of_a_frame(ragged: bool) -> None:
    """Softmax sees no shift: the gradients of a frame's log scores sum to zero."""
    mask = jnp.asarray(np.random.default_rng(3).random((CELLS, GRID.window)) < 0.7) if ragged else None
    bias = soft_bias(jnp.asarray(LOGITS), ROWS, GRID)
    g = np.asarray(jax.jit(jax.grad(lambda b: _task(b, mask)))(bias))
    assert np.abs(g).max() > 1e-2
    np.testing.assert_allclose(g.sum(axis=-1), 0, atol=1e-5 * np.abs(g).sum(axis=-1).max())


def test_the_bias_is_added_once_a_patch() -> None:
    """softmax(q k / sqrt(d) + b_cell): against the formula, one query at a time."""
    qkv, _ = _qkv()
    bias = soft_bias(jnp.asarray(LOGITS), ROWS, GRID)
    got = WholeFrames(bias).attend(qkv)
    q, k, v = (np.asarray(qkv[0, 1, :, :, i, 0], np.float64).reshape(-1, 4) for i in range(3))
    logits = q @ k.T / 2 + np.repeat(np.asarray(bias[0, 1], np.float64), GRID.window)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(got[0, 1, :, :, 0].reshape(-1, 4), weights @ v, atol=1e-5)
