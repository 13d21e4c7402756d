"""Which moments of a video are looked at."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.data.sampling import FrameSampling


@pytest.mark.parametrize(
    ("duration", "max_frames", "count"),
    [(0.033, 128, 2), (0.3, 128, 2), (0.5, 128, 2), (1, 128, 3), (3, 128, 7), (10, 128, 21)]
    + [(63.5, 128, 128), (63.6, 128, 128), (191.5, 384, 384), (191.6, 384, 384), (600, 384, 384), (0, 8, 1), (9, 1, 1)],
)
def test_times_vectors(duration: float, max_frames: int, count: int) -> None:
    times = FrameSampling(max_frames, 2).times(duration)
    assert len(times) == count and times[0] == 0 and (times[-1] == duration or max_frames == 1)
    if duration in (63.5, 191.5, 10):
        assert np.array_equal(times, np.arange(count) / 2)
    if duration in (63.6, 191.6, 600):
        assert np.allclose(np.diff(times), duration / (count - 1))


@given(st.floats(0.001, 5000), st.integers(1, 400), st.one_of(st.none(), st.floats(0.1, 30)))
def test_times_properties(duration: float, max_frames: int, max_fps: float | None) -> None:
    times = FrameSampling(max_frames, max_fps).times(duration)
    assert 1 <= len(times) <= max_frames and times[0] == 0
    assert max_frames == 1 or times[-1] == duration
    assert (np.diff(times) > 0).all() and (max_fps is None or (np.diff(times)[:-1] > 0.999 / max_fps).all())


def test_nonsense_is_refused() -> None:
    for duration in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cannot sample"):
            FrameSampling(4, 2).times(duration)


@pytest.mark.parametrize(
    ("total", "fps", "max_frames", "count", "last"),
    [(300, 30, 64, 20, 9.5), (18_000, 30, 384, 384, 598.4), (18_000, 30, 64, 64, 590.6), (10, 1, 64, 10, 9.0)]
    + [(300, 30, 7, 7, 8.6), (3, 30, 64, 1, 0.0), (40, 2, 8, 8, 17.5), (1, 30, 64, 1, 0.0)],
)
def test_as_in_transformers(total: int, fps: float, max_frames: int, count: int, last: float) -> None:
    """Molmo2's documented differences: the end is left out, slow videos give every frame."""
    index = FrameSampling(max_frames, 2).indices(total, total / fps)
    assert len(index) == count and index[0] == 0
    assert f"{index[-1] / fps:.1f}" == f"{last:.1f}"


@given(st.integers(1, 20_000), st.floats(0.5, 240), st.integers(1, 400), st.one_of(st.none(), st.floats(0.1, 30)))
def test_indices_properties(total: int, fps: float, max_frames: int, max_fps: float | None) -> None:
    index = FrameSampling(max_frames, max_fps).indices(total, total / fps)
    assert 1 <= len(index) <= min(max_frames, total) and index[0] == 0 and index[-1] < total
    assert (np.diff(index) > 0).all()
    if max_fps is not None and fps > max_fps:
        assert len(index) <= max(len(FrameSampling(max_frames, max_fps).times(total / fps)), 1)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling='best' is unknown; choose one of molmo2, transformers"):
        FrameSampling(8, 2, "best")


@pytest.mark.parametrize("frames", [0, -1, 2.5, "8", None, True, math.nan, 10**9])
def test_frames_are_counted(frames: object) -> None:
    with pytest.raises(ValueError, match="max_frames=.* must be positive and whole"):
        FrameSampling(frames)


@pytest.mark.parametrize("rate", [0, 0.0, -1.0, math.nan, math.inf, "2"])
def test_rates_are_positive_and_finite(rate: object) -> None:
    with pytest.raises(ValueError, match="max_fps=.* must be positive and finite"):
        FrameSampling(8, rate)
