"""`bench tpu`: a block compiled for a TPU on any machine."""

import json
import textwrap
from pathlib import Path

import pytest

from sttts_jax.cli import bench
from sttts_jax.cli.main import run
from tests.aot import run_for_tpu

COMPILE = textwrap.dedent(
    """
    import sys
    from sttts_jax.cli import bench
    from sttts_jax.cli.main import run

    words = ["tpu", "--chip", sys.argv[1][:3], "--preset", "tiny", "--frames", "64", "--k", "0.5", "--json", "FILE"]
    sys.exit(run("bench", bench.main, words))
    """
)


@pytest.mark.aot_tpu
def test_a_pruned_block_moves_less_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tpu.json"
    lines = run_for_tpu(COMPILE.replace('"FILE"', repr(str(file))), "v5p:2x2x1")
    rows = json.loads(file.read_text())["rows"]
    assert [(row["pass"], row["k"]) for row in rows] == [(p, k) for k in (0, 0.5) for p in ("forward", "train")]
    assert len(lines) == len(rows)
    for row in rows[2:]:
        assert row["bound"] > 1.9 and row["hbm_ratio"] < 0.8
        assert row["share"] == pytest.approx(row["speedup"] / row["bound"])
        assert row["temp_gib"] >= 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "--pruned_fraction 0 removes nothing"),
        (["--frames", "0"], "--frames 0 must be at least 1"),
        (["--preset", "molmo"], "molmo"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run("bench", bench.main, ["tpu", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
