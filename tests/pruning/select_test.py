"""Selection over arbitrary scores and item mixes: exact count, right cells, right order, stable ties."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.pruning.budget import as_fraction, n_drop
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.select import Kept, select_cells
from tests.pruning.cases import Item, frame_rows, kept_of, scores_like, spans

FRAMES, CELLS = 6, 4
TOTAL = FRAMES * CELLS
FRACTIONS = [as_fraction(k) for k in ("0", "0.3", "0.5", "0.77", "0.9")]

_few = st.sampled_from([0.0, -0.0, 1.0, 1.5])  # ties on purpose
_wild = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 2e-38, -2e-38])
_any = st.floats(width=32, allow_subnormal=False)  # XLA counts subnormal numbers as 0


@st.composite
def item_mixes(draw: st.DrawFn) -> tuple[Item, ...]:
    left, items = FRAMES, []
    while left and draw(st.integers(0, 4)):
        count = draw(st.integers(1, left))
        items.append((draw(st.sampled_from(["video", "video", "image"])), count))
        left -= count
    return tuple(items)


def score_arrays() -> st.SearchStrategy[np.ndarray]:
    lists = [st.lists(values, min_size=TOTAL, max_size=TOTAL) for values in (_few, _few | _wild, _any, _any | _wild)]
    return st.one_of(lists).map(lambda x: np.asarray(x, np.float32).reshape(FRAMES, CELLS))


@functools.cache
def _select(fraction: Fraction, capacity: int):
    return jax.jit(lambda scores, rows: select_cells(scores, rows, fraction, capacity))


def _run(scores: np.ndarray, items: tuple[Item, ...], fraction: Fraction, capacity: int = TOTAL) -> Kept:
    rows = frame_rows(items, frames=FRAMES)
    return jax.tree.map(lambda x: np.asarray(x[0]), _select(fraction, capacity)(scores[None], rows))


def _ranking(scores: np.ndarray) -> list[int]:
    """Cells of one video, best first, by the written rule; the first frame before everything, NaN after everything."""
    flat = [-np.inf if np.isnan(x) else float(x) for x in scores.reshape(-1)]
    key = [(cell >= CELLS, -value if cell >= CELLS else 0.0, cell) for cell, value in enumerate(flat)]
    return sorted(range(len(flat)), key=key.__getitem__)


@settings(deadline=None, max_examples=300)
@given(score_arrays(), item_mixes(), st.sampled_from(FRACTIONS))
def test_the_right_cells_are_kept(scores: np.ndarray, items: tuple[Item, ...], fraction: Fraction) -> None:
    kept = _run(scores, items, fraction)
    expected = np.zeros((FRAMES, CELLS), bool)
    for kind, frames in spans(items):
        count = frames.stop - frames.start
        flat = np.ones(count * CELLS, bool)
        if kind == "video":
            worst = _ranking(scores[frames])[::-1][: n_drop(count, fraction, CELLS)]
            flat[worst] = False
        expected[frames] = flat.reshape(count, CELLS)
    np.testing.assert_array_equal(kept.mask, expected)


@settings(deadline=None, max_examples=300)
@given(score_arrays(), item_mixes(), st.sampled_from(FRACTIONS))
def test_invariants(scores: np.ndarray, items: tuple[Item, ...], fraction: Fraction) -> None:
    """The same without an oracle: what every caller relies on."""
    kept = _run(scores, items, fraction)
    mask, used = kept.mask, sum(count for _, count in items)
    assert mask.sum() == kept_of(items, fraction, CELLS)
    assert not mask[used:].any(), "padding is never kept"
    for kind, frames in spans(items):
        assert mask[frames.start].all(), "first frames stay whole"
        if kind == "image":
            assert mask[frames].all()
            continue
        later = slice(frames.start + 1, frames.stop)
        value = np.where(np.isnan(scores[later]), -np.inf, scores[later])
        live, dead = value[mask[later]], value[~mask[later]]
        if len(live) and len(dead):
            assert live.min() >= dead.max()
            order = np.flatnonzero(value.reshape(-1) == live.min())
            inside = mask[later].reshape(-1)[order]
            assert (np.diff(inside.astype(int)) <= 0).all(), "of equal scores the earlier cells live"
    _check_maps(kept, TOTAL)


def _check_maps(kept: Kept, capacity: int) -> None:
    """ids rise, hold every survivor once, and undo inverse."""
    alive = np.flatnonzero(kept.mask.reshape(-1))
    np.testing.assert_array_equal(kept.ids[: len(alive)], alive)
    assert (kept.ids[len(alive) :] == TOTAL).all() and kept.ids.shape == (capacity,)
    inverse = np.full(TOTAL, capacity)
    inverse[alive] = np.arange(len(alive))
    np.testing.assert_array_equal(kept.inverse, inverse)


@pytest.mark.parametrize("capacity", [11, 12, 17, TOTAL, TOTAL + 5])
def test_any_capacity_that_holds_the_row(capacity: int) -> None:
    items = (("video", 3), ("video", 2))  # 6 + 4 survivors
    kept = _run(scores_like("uniform", FRAMES, CELLS), items, as_fraction("0.5"), capacity)
    assert kept.mask.sum() == 10
    _check_maps(kept, capacity)


def test_a_capacity_too_small_for_traced_rows_cuts_the_tail_of_the_stream_consistently() -> None:
    items = (("video", 1), ("video", 1), ("video", 4))
    kept = _run(scores_like("uniform", FRAMES, CELLS), items, as_fraction("0.5"), 12)
    alive = np.flatnonzero(kept.mask.reshape(-1))
    assert len(alive) == 16
    np.testing.assert_array_equal(kept.ids, alive[:12])
    assert set(np.flatnonzero(kept.inverse < 12)) == set(alive[:12])


@pytest.mark.parametrize(
    ("items", "kept"),
    [([("video", 6)], 12), ([("video", 1), ("video", 1), ("video", 4)], 16), ([("image", 2), ("video", 2)], 12)],
)
def test_a_capacity_too_small_for_known_rows_is_refused(items: list[Item], kept: int) -> None:
    """Also where a compiled function closes over the rows; a row with padding keeps less than a full one."""
    rows, scores = frame_rows([("video", 1)], items, frames=FRAMES), jnp.zeros((2, FRAMES, CELLS))
    assert kept == kept_of(items, as_fraction("0.5"), CELLS)
    for run in (lambda f: f(scores), lambda f: jax.eval_shape(f, scores)):
        run(lambda scores: select_cells(scores, rows, as_fraction("0.5"), kept))
        with pytest.raises(ValueError, match=f"capacity={kept - 1} would cut survivors: a row keeps {kept} cells at"):
            run(lambda scores: select_cells(scores, rows, as_fraction("0.5"), kept - 1))


def test_a_capacity_that_does_not_hold_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"capacity=3 would cut .* fraction=1/2; take row_capacity\(6, fraction, 4"):
        _run(scores_like("uniform", FRAMES, CELLS), (("video", 6),), as_fraction("0.5"), 3)


@pytest.mark.parametrize("shape", [(FRAMES, CELLS), (1, FRAMES - 1, CELLS), (2, FRAMES, CELLS), (1, FRAMES, CELLS, 1)])
def test_scores_of_other_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scores has shape .* rows of shape \(1, 6\) need \(1, 6, C\); give both"):
        _select(as_fraction("0.5"), TOTAL)(np.zeros(shape, np.float32), frame_rows([("video", 6)], frames=FRAMES))


def test_beyond_the_largest_share_only_first_frames_live() -> None:
    kept = _run(scores_like("bursty", FRAMES, CELLS), (("video", 4), ("video", 2)), as_fraction("0.9"))
    np.testing.assert_array_equal(kept.mask, np.isin(np.arange(FRAMES), (0, 4))[:, None] & np.ones(CELLS, bool))


def test_the_unit_of_the_scores_does_not_matter() -> None:
    scores = scores_like("uniform", FRAMES, CELLS)
    masks = [_run(x, (("video", 6),), as_fraction("0.5")).mask for x in (scores, 1e20 * scores, 1e-20 * scores - 0.0)]
    assert (masks[0] == masks[1]).all() and (masks[0] == masks[2]).all()


def test_leading_axes_are_mapped() -> None:
    """[2, 3, F, C] equals six calls; no row sees another."""
    rng = np.random.default_rng(1)
    mixes = [(("video", 6),), (("video", 2), ("image", 1), ("video", 3)), (("video", 4),)]
    scores = rng.standard_normal((2, 3, FRAMES, CELLS)).astype(np.float32)
    rows = frame_rows(*mixes, frames=FRAMES)
    both = FrameRows(jnp.stack([rows.item, rows.item]), jnp.stack([rows.prunable, rows.prunable]))
    got = _select(as_fraction("0.5"), TOTAL)(scores, both)
    for i in range(2):
        for j, items in enumerate(mixes):
            alone = _run(scores[i, j], items, as_fraction("0.5"))
            for a, b in zip(got, alone, strict=True):
                np.testing.assert_array_equal(a[i, j], b)
