"""The distributions: the same scores from the same seed, and survivors that lie as promised after real selection."""

import dataclasses
import pathlib
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.bench.distributions import DISTRIBUTIONS, file_scores, make_scores
from sttts_jax.bench.scopes import BenchShapes
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept

SHAPES = BenchShapes(preset("molmo2-4b").vit, frames=16, batch=2, dtype=jnp.float32)
CELLS = 81
KS = [Fraction(k) for k in ("0.3", "0.4", "0.5", "0.7")]


def _counts(name: str, k: Fraction, shapes: BenchShapes = SHAPES) -> np.ndarray:
    scores = make_scores(name, 0, shapes.batch, shapes.frames, CELLS, k)
    return np.asarray(shapes.keep(scores, k).mask.sum(axis=-1))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_scores_follow_the_seed(name: str) -> None:
    size = (2, 12, 81, Fraction(1, 2))
    first, again, other = (make_scores(name, seed, *size) for seed in (3, 3, 4))
    assert first.shape == (2, 12, 81) and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()


@pytest.mark.parametrize("k", KS, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_survivors_meet_the_budget_and_the_first_frame_is_whole(name: str, k: Fraction) -> None:
    counts = _counts(name, k)
    assert (counts.sum(axis=1) == n_kept(16, k, CELLS)).all()
    assert (counts[:, 0] == CELLS).all()


@pytest.mark.parametrize("k", KS, ids=str)
def test_adversarial_keeps_more_than_half_of_every_frame_it_reaches(k: Fraction) -> None:
    counts = _counts("adversarial", k)
    assert (counts[counts > 0] >= 41).all()
    rest = np.sort(counts[:, 1:])
    assert (rest[rest > 0].reshape(2, -1)[:, :2].sum(axis=1) > CELLS).all()  # the two smallest share no bin


@pytest.mark.parametrize("k", KS, ids=str)
def test_bursty_has_frames_at_nine_tenths_and_the_rest_even(k: Fraction) -> None:
    counts = _counts("bursty", k)[:, 1:]
    most = (n_kept(16, k, CELLS) - CELLS) // 73
    assert ((counts == 73).sum(axis=1) == min(8, most)).all()
    for row in counts:
        rest = row[row != 73]
        assert rest.max() - rest.min() <= 1


def test_scene_cuts_are_uneven_and_uniform_is_even() -> None:
    spread = {name: _counts(name, Fraction(1, 2))[:, 1:].std() for name in ("uniform", "scene_cuts")}
    assert spread["scene_cuts"] > 2 * spread["uniform"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["bursty", "adversarial"]), st.integers(2, 9), st.integers(1, 12), st.integers(0, 99))
def test_planned_counts_are_what_selection_keeps(name: str, frames: int, cells: int, percent: int) -> None:
    k = Fraction(percent, 100)
    scores = make_scores(name, 1, 1, frames, cells, k)[0]
    best = np.sort(scores[1:].reshape(-1))[::-1]
    wanted = n_kept(frames, k, cells) - cells
    # A gap of the planned size: no draw decides what is kept.
    assert (scores[1:] >= 1).sum() == wanted and (best[:wanted] >= 1).all()


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no distribution is called 'even'; use one of uniform"):
        make_scores("even", 0, 1, 4, 9, Fraction(1, 2))


def test_scores_of_a_file_are_spread_evenly_over_its_frames(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "scores.npz"
    scores = np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3)
    np.savez_compressed(path, scores=scores, keep=scores > 3)
    np.testing.assert_array_equal(file_scores(path, 5, (2, 3)), scores.reshape(5, 6))
    np.testing.assert_array_equal(file_scores(path, 3, (2, 3)), scores[[0, 2, 4]].reshape(3, 6))
    with pytest.raises(ValueError, match="has 5 frames; give --frames 5 or less"):
        file_scores(path, 6, (2, 3))
    with pytest.raises(ValueError, match=r"has cells \(2, 3\), the model \(9, 9\)"):
        file_scores(path, 4, (9, 9))


def test_files_without_scores(tmp_path: pathlib.Path) -> None:
    np.savez_compressed(tmp_path / "none.npz", keep=np.ones((4, 2, 3), bool))
    with pytest.raises(ValueError, match="holds no scores"):
        file_scores(tmp_path / "none.npz", 4, (2, 3))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "none.npz").read_bytes()[:40])
    for name in ("array.npy", "text.npz", "cut.npz"):
        with pytest.raises(ValueError, match="is not an .npz file"):
            file_scores(tmp_path / name, 4, (2, 3))
    with pytest.raises(FileNotFoundError):
        file_scores(tmp_path / "missing.npz", 4, (2, 3))


def test_shapes_that_follow_from_the_config() -> None:
    assert SHAPES.vit.head_layers == 5 and SHAPES.capacity(Fraction(1, 2)) == 648
    assert dataclasses.replace(SHAPES, frames=2).rows.item.shape == (2, 2)
