"""The names of the library: all of them load, and none before it is used."""

import subprocess
import sys

from sttts_jax import pruning


def test_the_budget_needs_no_jax() -> None:
    """Data workers import it by the thousand."""
    code = "import sys; from sttts_jax.pruning import n_kept; print(n_kept(2, '0.5', 9), 'jax' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["9", "False"]


def test_every_name_loads() -> None:
    names = [name for name in dir(pruning) if not name.startswith("_") and name != "epy"]
    assert {"FrameRows", "Scorer", "soft_bias", "select_cells", "stream_layout", "unpack_cells"} <= set(names)
    for name in names:
        assert getattr(pruning, name) is not None
