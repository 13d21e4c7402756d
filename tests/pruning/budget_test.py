"""The budget: exact for decimals, clamped, and the capacity of a row is the true maximum."""

import functools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.pruning.budget import MOST_FRAMES, as_fraction, n_drop, n_kept, row_capacity

decimals = st.integers(0, 9999).map(lambda n: Fraction(n, 10_000))


@pytest.mark.parametrize("k", [0.3, "0.3", "0.30", Fraction(3, 10)])
def test_a_decimal_is_what_it_says(k: object) -> None:
    assert as_fraction(k) == Fraction(3, 10)  # type: ignore[arg-type]
    assert n_drop(10, k, 81) == 243  # type: ignore[arg-type]


def test_floats_do_not_round_it_down() -> None:
    assert n_drop(30, 0.7, 81) == 1701
    assert int(81 * 0.7 * 30) == 1700  # what float64 gives


@pytest.mark.parametrize(
    ("frames", "k", "dropped"),
    [
        (0, "0.5", 0),
        (1, "0.5", 0),
        (1, "0.99", 0),
        (2, "0.5", 81),
        (2, "0.49", 79),
        (2, "0.9", 81),  # beyond (T - 1) / T: clamped
        (4, "0.75", 243),
        (4, "0.76", 243),
        (4, "0.7499", 242),
        (64, "0", 0),
        (64, "0.5", 2592),
        (64, "0.984375", 63 * 81),
        (64, "0.999", 63 * 81),
    ],
)
def test_dropped(frames: int, k: str, dropped: int) -> None:
    assert n_drop(frames, k, 81) == dropped
    assert n_kept(frames, k, 81) == 81 * frames - dropped


@given(st.integers(1, 300), decimals, st.integers(1, 100))
def test_kept_is_exact_and_holds_the_first_frame(frames: int, k: Fraction, cells: int) -> None:
    exact = cells * frames * (1 - k)
    assert n_kept(frames, k, cells) >= cells
    assert 0 <= n_kept(frames, k, cells) - max(exact, cells) < 1
    assert n_kept(frames, k, cells) <= n_kept(frames + 1, k, cells)
    assert n_kept(frames, k, cells) == n_kept(frames, str(k.numerator / k.denominator), cells)


@functools.cache
def _partitions(frames: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All ways to share up to `frames` frames between up to `parts` videos."""

    def grow(left: int, parts: int, most: int) -> Iterator[tuple[int, ...]]:
        yield ()
        if parts:
            for first in range(1, min(left, most) + 1):
                yield from ((first, *rest) for rest in grow(left - first, parts - 1, first))

    return tuple(grow(frames, parts, frames))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), decimals, st.integers(1, 12))
def test_row_capacity_is_the_maximum_over_all_partitions(frames: int, items: int, k: Fraction, cells: int) -> None:
    brute = max(sum(n_kept(t, k, cells) for t in part) for part in _partitions(frames, items))
    assert row_capacity(frames, k, cells, items) == brute


@pytest.mark.parametrize(
    "k", ["1", "1.5", -0.1, "nan", "inf", "half", "", "3/10x", None, "1e999999999", "1e-999999999"]
)
def test_shares_out_of_range_are_refused(k: object) -> None:
    with pytest.raises(ValueError, match="pruned_fraction=.*give"):
        as_fraction(k)  # type: ignore[arg-type]


def test_the_longest_row_is_known_soon() -> None:
    begun = time.monotonic()
    assert row_capacity(2048, "0.5", 81, items=10**9) == 2048 * 81  # each frame alone
    assert row_capacity(MOST_FRAMES, "0.5", 81) == MOST_FRAMES * 81 // 2
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("frames", "items"), [(0, 1), (4, 0), (-1, 1)])
def test_empty_rows_are_refused(frames: int, items: int) -> None:
    with pytest.raises(ValueError, match="at least 1 frame and 1 item"):
        row_capacity(frames, "0.5", 81, items=items)


@pytest.mark.parametrize("function", [n_drop, n_kept, row_capacity])
def test_the_cells_of_a_frame_are_asked_for(function: Callable) -> None:
    """No model's grid is a default: another ViT would get the wrong shapes without a word."""
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'cells'"):
        function(8, "0.5")
