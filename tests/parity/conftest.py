"""Every comparison says how far apart the two sides are; the numbers are printed as a table at the end of the run."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sttts_jax.text_table import text_table

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
NAME = "parity"
Check = Callable[..., None]


@pytest.fixture(name="check")
def _check(record_property: Callable[[str, object], None]) -> Check:
    """check(model, quantity, got, want, bound): notes the largest difference, and asserts that it is within the bound.

    With `relative`, the difference is that over the largest of `want`.
    """

    def check(model: str, quantity: str, got: Any, want: Any, bound: float, relative: bool = False) -> None:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape and np.isfinite(got).all()
        error = float(np.abs(got - want).max(initial=0.0)) / (np.abs(want).max() if relative else 1.0)
        note(record_property, model, quantity, error, bound)

    return check


def note(record: Callable[[str, object], None], model: str, quantity: str, error: float, bound: float) -> None:
    """One line of the table; asserts the bound."""
    error, bound = float(error), float(bound)  # plain, so that a worker can send them
    record(NAME, (model, quantity, error, bound))
    assert error <= bound, f"{model}, {quantity}: {error:.2e} is above {bound:.0e}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, whether the tests passed or not; comparisons of the same name are one line with the largest error."""
    worst: dict[tuple[str, str, float], float] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, line in report.user_properties:
                if name == NAME and getattr(report, "when", "call") == "call":
                    model, quantity, error, bound = line
                    key = (model, quantity, bound)
                    worst[key] = max(worst.get(key, 0.0), error)
    if worst:
        terminalreporter.section("parity with transformers, float32")
        rows = [(*key[:2], f"{error:.1e}", f"{key[2]:.0e}") for key, error in worst.items()]
        terminalreporter.write_line(text_table(("model", "quantity", "largest error", "bound"), rows))
