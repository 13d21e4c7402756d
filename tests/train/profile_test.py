"""The trace covers the window and nothing is written without one."""

import os
import signal
from pathlib import Path

import jax.numpy as jnp
import pytest

from sttts_jax.train.profile import ON_DEMAND, ProfileConfig, ProfileWindow
from tests.fake_gcs import FakeGcs


def test_a_window_writes_a_trace(tmp_path: Path) -> None:
    window = ProfileWindow(ProfileConfig(first=2, steps=1), tmp_path)
    last = None
    for step in (1, 2, 3):
        window.before(step, last)
        assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step > 2)
        last = jnp.ones(8) * step
    window.close()


def test_a_signal_asks_for_a_trace(gcs: FakeGcs) -> None:
    """In a bucket, where the profiler cannot write by itself."""
    before = signal.getsignal(ON_DEMAND)
    window = ProfileWindow(ProfileConfig(on_demand=2), "gs://profile/run/profile")
    for step in range(1, 6):
        if step == 2:
            os.kill(os.getpid(), ON_DEMAND)
        window.before(step, jnp.ones(8) * step)
        traced = any(key.startswith("profile/run/profile/") and key.endswith(".xplane.pb") for key in gcs.objects)
        assert traced == (step >= 4)
    window.close()
    assert signal.getsignal(ON_DEMAND) is before


def test_no_window_no_trace(tmp_path: Path) -> None:
    window = ProfileWindow(ProfileConfig(), tmp_path)
    window.before(10)
    window.close()
    assert not list(tmp_path.iterdir())


def test_impossible_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profile.first=0"):
        ProfileWindow(ProfileConfig(first=0, steps=1), tmp_path)
