"""The staircase: its slots hold every distribution of survivors, and its maps lose and mix nothing."""

import functools
import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.select import select_cells
from sttts_jax.pruning.staircase import stairs, stream_layout
from tests.pruning.cases import Item, frame_rows
from tests.pruning.select_test import item_mixes

FRAMES, CELLS = 6, 4
FRACTIONS = [as_fraction(k) for k in ("0.3", "0.5", "0.7", "0.9")]


def _caps(runs: tuple[tuple[int, int], ...], frames: int) -> np.ndarray:
    caps = np.repeat([cells for _, cells in runs], [number for number, _ in runs])
    return np.pad(caps, (0, frames - len(caps)))


@st.composite
def count_vectors(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Survivors of each frame of a row, one of them whole; the capacity; C."""
    cells, frames = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    counts = [cells] + draw(st.lists(st.integers(0, cells), min_size=frames - 1, max_size=frames - 1))
    return draw(st.permutations(counts)), sum(counts) + draw(st.integers(0, 5)), cells


@settings(deadline=None, max_examples=300)
@given(count_vectors(), st.integers(1, 8))
def test_any_counts_fit(case: tuple[list[int], int, int], classes: int) -> None:
    counts, capacity, cells = case
    runs = stairs(len(counts), capacity, cells, classes)
    assert len(runs) <= classes
    assert (np.sort(counts)[::-1] <= _caps(runs, len(counts))).all()


@pytest.mark.parametrize("classes", [1, 2, 4, 8])
def test_the_worst_counts_fit(classes: int) -> None:
    """j frames that share the budget evenly: where a cap that is one too low would fail."""
    for frames, cells, capacity in itertools.product((2, 5, 16, 33), (6, 81), (81, 300, 648, 1300)):
        caps = _caps(stairs(frames, capacity, cells, classes), frames)
        for j in range(1, frames):
            each = min(cells, max(capacity - cells, 0) // j)
            assert caps[0] >= cells and (caps[1 : j + 1] >= each).all()


def test_more_classes_cost_less_attention() -> None:
    work = [sum(n * c * c for n, c in stairs(16, 648, 81, classes)) for classes in (1, 2, 4, 8, 16)]
    assert work[0] == 16 * 81**2 and work == sorted(work, reverse=True) and work[2] < 0.8 * work[0]
    assert stairs(16, 648, 81) == ((8, 81), (2, 70), (3, 56), (3, 43))


@functools.cache
def _layout(fraction: Fraction, capacity: int):
    def make(scores: jax.Array, rows):
        kept = select_cells(scores, rows, fraction, capacity)
        return kept, stream_layout(kept)

    return jax.jit(make)


def _check_maps(items: tuple[Item, ...], scores: np.ndarray, fraction: Fraction, capacity: int) -> None:
    kept, layout = _layout(fraction, capacity)(scores[None], frame_rows(items, frames=FRAMES))
    ids, slots, places = (np.asarray(x[0]) for x in (kept.ids, layout.slots, layout.places))
    caps = _caps(layout.stairs, FRAMES)
    slot_of_place = np.repeat(np.arange(FRAMES), caps)
    alive = int(kept.mask.sum())
    assert len(slots) == caps.sum()
    assert (places[:alive] < len(slots)).all(), "every survivor has a place"
    np.testing.assert_array_equal(slots[places[:alive]], np.arange(alive))
    assert (places[alive:] == len(slots)).all()
    assert (slots < capacity).sum() == alive, "and nothing else has one"
    pairs = set(zip(ids[:alive] // CELLS, slot_of_place[places[:alive]], strict=True))
    frames, used = zip(*pairs, strict=True) if pairs else ((), ())
    assert len(set(frames)) == len(pairs) == len(set(used)), "a slot is one frame, a frame is one slot"
    np.testing.assert_array_equal(layout.counts[0], np.sort(kept.mask[0].sum(axis=-1))[::-1])


@settings(deadline=None, max_examples=200)
@given(
    item_mixes(),
    st.lists(st.integers(0, 3), min_size=FRAMES, max_size=FRAMES),
    st.integers(0, 2**31),
    st.sampled_from(FRACTIONS),
    st.booleans(),
)
def test_maps(items: tuple[Item, ...], levels: list[int], seed: int, fraction: Fraction, roomy: bool) -> None:
    noise = np.random.default_rng(seed).random((FRAMES, CELLS), np.float32)
    if any(kind == "image" for kind, _ in items):
        roomy = True  # images keep all cells: more than the capacity of videos
    capacity = FRAMES * CELLS + 2 if roomy else row_capacity(FRAMES, fraction, CELLS, items=FRAMES)
    _check_maps(items, noise + np.asarray(levels, np.float32)[:, None], fraction, capacity)


@pytest.mark.parametrize("frames", [1, 2])
def test_maps_of_the_shortest_videos(frames: int) -> None:
    for fraction in FRACTIONS:
        _check_maps((("video", frames),), np.zeros((FRAMES, CELLS), np.float32), fraction, 14)
