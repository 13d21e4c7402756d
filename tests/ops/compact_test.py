"""Counting against numpy's own ways to find and to number what is set."""

import numpy as np
import pytest

from sttts_jax.ops.compact import in_lines, places, set_positions


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_positions_and_places_are_numpys(share: float) -> None:
    mask = np.random.default_rng(0).random(300) < share
    lines = in_lines(mask)
    assert lines.shape == (3, 128)
    np.testing.assert_array_equal(np.asarray(places(lines)).reshape(-1)[:300], np.cumsum(mask) - mask)
    found = np.flatnonzero(mask)
    for size in (1, 100, 300, 500):
        wanted = np.full(size, lines.size)
        wanted[: len(found)] = found[:size]
        np.testing.assert_array_equal(set_positions(lines, size), wanted)
