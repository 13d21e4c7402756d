"""The trace covers the window and nothing is written without one."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from sttts_jax.train.profile import ProfileConfig, ProfileWindow


def test_a_window_writes_a_trace(tmp_path: Path) -> None:
    window = ProfileWindow(ProfileConfig(first=2, steps=1), tmp_path)
    last = None
    for step in (1, 2, 3):
        window.before(step, last)
        assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step > 2)
        last = jnp.ones(8) * step
    window.close()


def test_no_window_no_trace(tmp_path: Path) -> None:
    window = ProfileWindow(ProfileConfig(), tmp_path)
    window.before(10)
    window.close()
    assert not list(tmp_path.iterdir())


def test_impossible_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profile.first=0"):
        ProfileWindow(ProfileConfig(first=0, steps=1), tmp_path)
