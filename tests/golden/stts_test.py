"""Golden parity with the authors' code: every stored output and gradient, and a comparison that can fail."""

from pathlib import Path

import jax
import numpy as np
import pytest

from tests.golden import compare as module
from tests.golden.compare import compare, main

FOLDER = Path(__file__).parent / "stts"
FAST = "image_and_video_k50.npz"
FILES = [pytest.param(p.name, marks=[pytest.mark.slow] * (p.name != FAST)) for p in sorted(FOLDER.glob("*.npz"))]


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def test_there_are_files() -> None:
    assert len(FILES) == 5


@pytest.mark.parametrize("name", FILES)
def test_every_quantity_of_a_file(name: str) -> None:
    rows = list(compare(str(FOLDER / name)))
    failed = [f"{row.name}: error {row.error:.2e}, limit {row.limit:.0e}" for row in rows if not row.ok]
    assert not failed, "\n".join(failed)
    compared = {row.name for row in rows}
    for key in np.load(FOLDER / name).files:
        kind, _, what = key.partition("/")
        if kind == "grad":
            assert {f"grad {what}, staircase", f"grad {what}, bins"} <= compared, f"{key} is not compared"
        elif kind == "out":
            assert any(row.startswith(what) for row in compared), f"{key} is not compared"


def _disturbed(folder: Path, key: str, by: float) -> str:
    data = dict(np.load(FOLDER / FAST))
    value = data[key].copy()
    value.reshape(-1)[np.abs(value).argmax()] += by
    path = folder / "disturbed.npz"
    np.savez(path, **{**data, key: value})
    return str(path)


@pytest.mark.slow
def test_a_disturbed_weight_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = _disturbed(tmp_path, "weights/transformer.resblocks.5.feed_forward.w1.weight", 0.05)
    assert main([path]) == 1
    out = capsys.readouterr().out
    lines = {line.split("  error")[0].strip(): line for line in out.splitlines() if "  error" in line}
    # A block after the drop: what the scorer saw is as it was, what comes out is not.
    assert lines["scores"].endswith("ok") and lines["neighbour_cosine"].endswith("ok")
    for name in ("hidden_last_no_refill, staircase", "hidden_last_no_refill, bins", "hidden_last_reference"):
        assert lines[name].endswith("FAILS")
    assert out.endswith("NOT EQUAL\n")


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    rows = {
        "good": [module.Row("a", 0.0, 0.0)],
        "bad": [module.Row("a", 2e-4, 1e-4)],
        "nan": [module.Row("a", np.nan, 1.0)],
    }
    monkeypatch.setattr(module, "compare", rows.__getitem__)
    assert [main([name]) for name in rows] == [0, 1, 1]
    assert main(["bad", "good"]) == 1
    assert main([]) == 2 and "usage" in capsys.readouterr().err
