"""`bench pruning` end to end at toy sizes: what it writes, that nothing recompiles, and how it refuses."""

import json
import math
import pathlib
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.bench.distributions import DISTRIBUTIONS, make_scores
from sttts_jax.bench.record import speedup_table, write_plot
from sttts_jax.bench.scopes import SCOPE_CLASSES, BenchShapes
from sttts_jax.bench.sizes import bench_vit
from sttts_jax.bench.speedup import SpeedupRow
from sttts_jax.bench.timing import Group, Program, Trial, interleave, quartiles
from sttts_jax.cli import bench
from sttts_jax.cli.main import run
from sttts_jax.models.presets import preset

CONTRACT = {"what", "k", "frames", "distribution", "packing", "pass", "speedup", "bound", "share", "peak_gib"} | {
    "compilations"
}
TOY = ["--preset", "tiny", "--frames", "4", "--rounds", "2"]
SHAPES = BenchShapes(preset("tiny").vit, frames=4, batch=2, dtype=jnp.float32)
HALF = Fraction(1, 2)


def _bench(*words: str) -> int:
    return run("bench", bench.main, ["pruning", *words])


@pytest.mark.parametrize(
    ("scope", "what", "packing"),
    [
        ("layer", "forward,train", "staircase,bins"),
        ("tail", "forward", "staircase,bins"),
        ("tower", "train", "staircase"),
    ],
    ids=lambda value: value,
)
def test_end_to_end(
    scope: str, what: str, packing: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--scope", scope, *TOY, "--k", "0.5", "--distributions", "uniform,adversarial", "--pass", what]
    assert _bench(*words, "--packing", packing, "--json", str(path), "--plot", str(plot)) == 0
    shown = capsys.readouterr().out
    assert f"{scope} of tiny, width 48, float32" in shown and "adversarial" in shown and "no accelerator" not in shown
    assert plot.read_bytes().startswith(b"\x89PNG")

    record = json.loads(path.read_text())
    assert {"device", "dtype", "sizes", "versions", "batch", "rounds", "seed", "command"} <= set(record)
    assert record["sizes"]["width"] == 48 and record["dtype"] == "float32" and "jax" in record["versions"]
    passes = what.split(",")
    names = [(row["pass"], row["packing"], row["distribution"]) for row in record["rows"]]
    assert names == [(p, g, d) for p in passes for g in packing.split(",") for d in ("uniform", "adversarial")]
    for row in record["rows"]:
        assert set(row) >= CONTRACT
        assert row["what"] == scope and row["k"] == 0.5 and row["frames"] == 4
        assert row["share"] == pytest.approx(row["speedup"] / row["bound"])
        assert row["flops_per_s"] == pytest.approx(row["flops"] / row["seconds"])
        assert row["spread"][0] <= row["speedup"] <= row["spread"][1]
        assert row["peak_gib"] > 0 and row["compile_s"] > 0 and row["mfu"] > 0
        assert row["compilations"] == 1 or (scope, row["packing"]) == ("layer", "bins")
    for base in record["baselines"]:
        assert set(base) == set(record["rows"][0])
        assert base["speedup"] == base["bound"] == base["share"] == 1 and base["packing"] == "none"
    assert [base["pass"] for base in record["baselines"]] == passes


@pytest.mark.parametrize(("scope", "train"), [("layer", True), ("tail", False), ("tower", True)])
def test_one_trace_serves_all_distributions(scope: str, train: bool) -> None:
    instance, traces = SCOPE_CLASSES[scope](SHAPES), 0
    function = instance.variant(train, HALF, "staircase")

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return function(*args)

    program, jitted, results = Program(counted), jax.jit(counted), set()
    for name in DISTRIBUTIONS:
        args = instance.arguments(HALF, "staircase", make_scores(name, 0, 2, 4, SHAPES.vit.cells, HALF))
        out = program.compiled(*args).call(*args)
        results.add(float(jnp.sum(jax.tree.leaves(out)[0] ** 2)))
        jitted.trace(*args)  # what jit itself would do with these arguments: nothing new
        if scope == "tower":  # gradients reach all of it, the scorer included
            assert "scorer" in out[1]
            assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(out[1])) > 0
    assert traces == program.compilations == 1
    assert len(results) == len(DISTRIBUTIONS)  # and the scores do choose what is kept


def test_bins_and_staircase_compute_the_same() -> None:
    scores = make_scores("scene_cuts", 0, 2, 4, SHAPES.vit.cells, HALF)
    instance = SCOPE_CLASSES["tail"](SHAPES)
    outs = [
        jax.jit(instance.variant(False, HALF, packing))(*instance.arguments(HALF, packing, scores))
        for packing in ("staircase", "bins")
    ]
    for a, b in zip(*map(jax.tree.leaves, outs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_turns_begin_elsewhere_each_round() -> None:
    order: list[str] = []

    class Logged(Trial):
        def seconds(self) -> float:
            order.append(self.args[0])
            return {"base": 4.0, "a": 2.0, "b": 1.0, "c": 8.0}[self.args[0]]

    base, a, b, c = (Logged(None, (name,)) for name in ("base", "a", "b", "c"))  # type: ignore[arg-type]
    told: list[str] = []
    (first, table), (second, other) = interleave([Group(base, [a, b]), Group(base, [c])], 2, told.append)
    words = "".join(name[0] for name in order)
    assert words in ("bbabcbabbcbbabc", "bbabcbabbcbbabc") and len(told) == 1
    np.testing.assert_array_equal(first / table, [[2, 2], [4, 4]])
    np.testing.assert_array_equal(second / other, [[0.5, 0.5]])
    assert quartiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == (3, 2, 4)


def _row(**changes: Any) -> SpeedupRow:
    fields: dict[str, Any] = dict(what="layer", k=0.3, frames=4, distribution="uniform", packing="staircase")
    fields |= dict(pass_="forward", speedup=1.4, spread=(1.3, 1.5), bound=1.5, share=0.93, peak_gib=0.1, peak_ratio=0.7)
    fields |= dict(compilations=1, compile_s=1.0, seconds=0.1, seconds_spread=(0.1, 0.1), flops=1e9)
    return SpeedupRow(**{**fields, "flops_per_s": 1e10, "mfu": 0.5, **changes})


def test_plot_and_table_of_several_frame_counts(tmp_path: pathlib.Path) -> None:
    rows = [_row(k=k, frames=f, distribution=d) for f in (4, 8) for k in (0.3, 0.5) for d in ("uniform", "bursty")]
    baselines = [_row(k=0.0, frames=f, packing="none", distribution="any") for f in (4, 8)]
    assert speedup_table(rows, baselines).row_count == 10
    write_plot(tmp_path / "plot.svg", rows, "layer of tiny")
    text = (tmp_path / "plot.svg").read_text()
    assert text.startswith("<?xml") and math.isfinite(len(text))


def test_reduced_width() -> None:
    vit, reduced = bench_vit("molmo2-4b", reduce=True)
    assert reduced and (vit.width, vit.heads, vit.head_dim, vit.mlp, vit.layers) == (288, 4, 72, 1076, 25)
    assert bench_vit("molmo2-4b", reduce=False) == (preset("molmo2-4b").vit, False)
    assert bench_vit("tiny", reduce=True) == (preset("tiny").vit, False)
    vit, reduced = bench_vit("molmo2-4b", reduce=True, width=64, heads=2, head_dim=32, mlp=128, layers=6)
    assert not reduced and (vit.width, vit.layers, vit.prune_after, vit.feature_layers) == (64, 6, 3, (5, 3))
    assert bench_vit("molmo2-4b", reduce=False, layers=3)[0].prune_after == 0


def test_real_scores(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "scores.npz", tmp_path / "out.json"
    np.savez_compressed(path, scores=np.random.default_rng(0).normal(size=(7, 3, 3)).astype(np.float32))
    words = ["--scope", "layer", *TOY, "--pass", "forward", "--k", "0.5", "--distributions", "scores"]
    assert _bench(*words, "--scores", str(path), "--json", str(out)) == 0
    assert [row["distribution"] for row in json.loads(out.read_text())["rows"]] == ["scores"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--k", "1.5"], "--pruned_fraction=1.5 is out of range"),
        (["--k", "half"], "--pruned_fraction='half' is not a number"),
        (["--k", "0,0.5"], "--pruned_fraction 0 removes nothing"),
        (["--k", ","], "--pruned_fraction is empty"),
        (["--frames", "1"], "--frames 1 must be a whole number from 2 up"),
        (["--frames", "4,x"], "--frames x must be a whole number"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--batch", "-1"], "--batch -1 must be at least 1"),
        (["--width", "0"], "--width 0 must be at least 1"),
        (["--layers", "2"], "--layers 2 is too few"),
        (["--preset", "huge"], "No model preset is called 'huge'"),
        (["--packing", "stairs"], "--packing stairs is unknown; choose from staircase, bins"),
        (["--pass", "backward"], "--pass backward is unknown"),
        (["--distributions", "uniform,flat"], "--distributions flat is unknown"),
        (["--distributions", "scores"], "--distributions scores is unknown"),
        (["--scores", "missing.npz"], "missing.npz: No such file"),
        (["--remat", "some"], "No remat policy is called 'some'"),
        (["--remat", "full"], "--remat full has no effect on one block"),
        (["--plot", "plot.gif"], "--plot plot.gif must end in .png, .svg, .pdf"),
        (["--json", "."], "--json . is a directory"),
    ],
)
def test_bad_arguments_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STTTS_DEBUG", raising=False)
    assert _bench("--scope", "layer", *TOY, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("sttts-jax bench: error: ") and sentence in error and error.count("\n") == 1


def test_unknown_scope_and_no_subcommand() -> None:
    for words in ([], ["pruning", "--scope", "head"], ["pruning"]):
        with pytest.raises(SystemExit, match="2"):
            bench.main(words)
