"""`bench infer`: its bounds against XLA's count and by hand, its rows, another frame count for the baseline."""

import json
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.bench.bound import decode_bytes, decode_flops
from sttts_jax.bench.distributions import make_scores
from sttts_jax.bench.infer import InferPlan, measure, model_params
from sttts_jax.bench.workload import UNPRUNED, Workload
from sttts_jax.cli import bench
from sttts_jax.cli.main import run
from sttts_jax.models import flops
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig
from sttts_jax.models.presets import preset

HALF = Fraction(1, 2)
# Segments of one block each, and one block of language model: XLA counts the body of a loop once.
VLM = VlmConfig(
    VitConfig(
        width=128,
        heads=4,
        head_dim=32,
        mlp=512,
        layers=3,
        patch=8,
        grid=(6, 6),
        cell=(2, 2),
        feature_layers=(2, 1),
        prune_after=0,
    ),
    ConnectorConfig(width=128, heads=4, head_dim=32, mlp=256),
    LlmConfig(width=128, layers=1, heads=4, kv_heads=2, head_dim=32, mlp=512, vocab=512),
)
TOY = ["--preset", "tiny", "--text", "8", "--rounds", "2", "--k", "0.5", "--tokens", "3"]


def _bench(*words: str) -> int:
    return run("bench", bench.main, ["infer", *words])


def test_prefill_and_decoding_cost_what_xla_counts() -> None:
    load = Workload(VLM, frames=4, videos=1, text=12, batch=2, dtype=jnp.float32)
    model, batch = load.model(UNPRUNED, "none"), jax.tree.map(jnp.asarray, load.arrays(UNPRUNED))
    params = model_params(load)
    params["vit"].pop("scorer")
    tokens, slots = load.shape(UNPRUNED).length, load.shape(UNPRUNED).length + 4
    prefill = jax.jit(lambda p, b: model.apply({"params": p}, b, slots, method="prefill"))
    compiled = prefill.lower(params, batch).compile()
    kept = tokens - load.text
    # The plain kernel computes all pairs, those with empty slots of the cache too.
    extra = 2 * 4 * (tokens * slots - flops.example_pairs(tokens, kept)) * 4 * 32
    want = sum(row.total for row in load.flops(UNPRUNED, None, logits=1)) + extra
    assert want <= compiled.cost_analysis()["flops"] <= 1.06 * want

    logits, cache, position, _ = compiled(params, batch)
    args = params, jnp.argmax(logits, axis=-1), position, cache
    step = jax.jit(lambda p, token, at, cache: model.apply({"params": p}, token, at, cache, method="decode"))
    counted = step.lower(*args).compile().cost_analysis()["flops"]
    want = decode_flops(VLM.llm, 2, slots)
    assert want <= counted <= 1.15 * want  # softmax and norms weigh more where a row is one token


def test_bytes_of_decoding_by_hand() -> None:
    llm = preset("molmo2-4b").llm
    block = 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728) + 2 * 2560 + 2 * 128
    weights = 36 * block + 151_936 * 2560 + 2560
    assert decode_bytes(llm, 4, 5400, 2) == 2 * (weights + 4 * 5400 * 36 * 2 * 8 * 128)
    olmo = preset("molmo2-o-7b").llm
    tables = (100_278 + 128) * 4096  # of an embedding of its own only a line is read
    assert decode_bytes(olmo, 1, 0, 1) == flops.llm_parameters(olmo) - tables


def test_end_to_end(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "out.json", tmp_path / "out.svg"
    files = ["--json", str(path), "--plot", str(plot)]
    words = ["--frames", "4", "--batch", "2", "--distributions", "uniform,bursty", *files]
    assert _bench(*TOY, *words) == 0
    shown = capsys.readouterr().out
    assert "inference of tiny" in shown and "decode" in shown and plot.read_text().startswith("<?xml")
    record = json.loads(path.read_text())
    assert record["batch"] == 2 and record["sizes"]["llm"]["layers"] == 3
    names = [(row["what"], row["distribution"]) for row in record["rows"]]
    assert names == [(what, name) for what in ("prefill", "ttft", "decode") for name in ("uniform", "bursty")]
    bases = {row["what"]: row for row in record["baselines"]}
    assert list(bases) == ["prefill", "ttft", "decode"]
    for row in record["rows"]:
        base = bases[row["what"]]
        assert set(row) == set(base) and row["compilations"] == 1 and row["pass"] == "forward"
        assert row["baseline_frames"] == row["frames"] == 4 and row["batch"] == 2
        assert row["share"] == pytest.approx(row["speedup"] / row["bound"]) and row["peak_gib"] > 0
        assert (row["length"], base["length"]) == (18 + 8, 36 + 8)
        if row["what"] != "decode":
            assert row["bound"] == pytest.approx(base["flops"] / row["flops"])
    decode = record["rows"][-1]
    llm = preset("tiny").llm
    assert decode["flops"] == decode_flops(llm, 2, 26 + 2)
    assert decode["bound"] == pytest.approx(decode_bytes(llm, 2, 44 + 2, 4) / decode_bytes(llm, 2, 26 + 2, 4))


def test_more_pruned_frames_against_fewer_unpruned_ones() -> None:
    load, base = (Workload(preset("tiny"), n, 1, 8, 1, jnp.float32) for n in (8, 4))
    cells = load.vlm.vit.cells
    plan = InferPlan(
        base,
        load,
        [HALF],
        ["staircase"],
        ["prefill"],
        2,
        lambda k: {"uniform": make_scores("uniform", 0, 1, 8, cells, k)},
        rounds=1,
    )
    (row,), (baseline,) = measure(plan, 1e12, lambda line: None)
    assert (row.frames, row.baseline_frames, baseline.frames) == (8, 4, 4)
    assert row.length == baseline.length == 36 + 8
    assert row.bound == pytest.approx(baseline.flops / row.flops) and row.bound < 1
    counts = load.counts(make_scores("uniform", 0, 1, 8, cells, HALF), HALF)
    assert row.flops == load.flops(HALF, counts, logits=1)[0].total
    assert np.asarray(counts).sum() == 36


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frames", "4,6,8", "--baseline_frames", "4,6"], "--baseline_frames 4,6 must be one number, or one for"),
        (["--baseline_frames", "1"], "--baseline_frames 1 must be a whole number from 2 up"),
        (["--tokens", "0"], "--tokens 0 must be at least 1"),
        (["--what", "sample"], "--what sample is unknown; choose from prefill, ttft, decode"),
        (["--packing", "stairs"], "--packing stairs is unknown"),
        (["--json", "."], "--json . is a directory"),
        (["--scores", "missing.npz", "--distributions", "scores"], "missing.npz: No such file"),
    ],
)
def test_bad_arguments_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STTTS_DEBUG", raising=False)
    assert _bench(*TOY, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("sttts-jax bench: error: ") and sentence in error and error.count("\n") == 1
