"""Mixing by weights, whatever the sizes."""

from collections import Counter

import pytest

from sttts_jax.data.config import Source
from sttts_jax.data.mixture import mix


def test_weights_hold_and_every_source_goes_round() -> None:
    draws = mix([5, 300], [Source("a", 3.0), Source("b", 1.0)], seed=0)
    seen = [draws[i] for i in range(400)]
    assert Counter(source for source, _, _ in seen) == {0: 300, 1: 100}
    small = [index for source, index, _ in seen if source == 0]
    assert all(sorted(small[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 300, 5))  # once an epoch
    assert small[:5] != small[5:10] or small[5:10] != small[10:15]
    assert len({index for source, index, _ in seen if source == 1}) == 100
    assert len({number for _, _, number in seen}) > 390


def test_a_draw_is_a_function_of_its_place() -> None:
    one, two = (mix([50, 7], [Source("a"), Source("b", 2.0)], seed=3) for _ in range(2))
    assert [one[i] for i in (90, 3, 41)] == [two[i] for i in (90, 3, 41)]
    assert [one[i] for i in range(9)] != [mix([50, 7], [Source("a"), Source("b", 2.0)], seed=4)[i] for i in range(9)]


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="data source b .train. is empty"):
        mix([3, 0], [Source("a"), Source("b")], seed=0)
