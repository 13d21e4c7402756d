"""Wilson intervals: they hold the share, and are those of the literature."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.evals.accuracy import wilson


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_contains_the_share(right: int, more: int) -> None:
    a = wilson(right, right + more)
    assert 0 <= a.low <= a.value <= a.high <= 1
    assert a.count == right + more


def test_wilson_known_values() -> None:
    for right, count, low, high in ((0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (90, 100, 0.8256, 0.9448)):
        a = wilson(right, count)
        assert math.isclose(a.low, low, abs_tol=1e-4)
        assert math.isclose(a.high, high, abs_tol=1e-4)
