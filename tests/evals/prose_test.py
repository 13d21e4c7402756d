"""How methods and numbers are written."""

from sttts_jax.evals.prose import METHOD_NAMES, number, percent, seconds
from sttts_jax.pruning.config import METHODS


def test_every_method_has_a_name() -> None:
    assert set(METHOD_NAMES) == set(METHODS)
    assert len(set(METHOD_NAMES.values())) == len(METHODS)


def test_percent() -> None:
    assert [percent(value) for value in (0, 0.5, 0.333, 1)] == ["0 %", "50 %", "33.3 %", "100 %"]


def test_seconds() -> None:
    assert [seconds(value) for value in (0.0123, 0.9, 1.234, 75)] == ["12.3 ms", "900 ms", "1.23 s", "75 s"]


def test_numbers_of_an_axis_are_never_powers() -> None:
    shown = [number(value) for value in (0, 0.0125, 12.5, 1500, 15_000, 150_000, 2.5e6, 1e9, -15_000)]
    assert shown == ["0", "0.0125", "12.5", "1,500", "15 k", "150 k", "2.5 M", "1 G", "-15 k"]
