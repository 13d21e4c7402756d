"""`bench train`: its bound against XLA's count of the real model, its rows, and that one program serves a fraction."""

import dataclasses
import json
import pathlib
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.bench.bound import row_pass_flops
from sttts_jax.bench.distributions import make_scores
from sttts_jax.bench.memory import infer_gib, state_gib, train_gib
from sttts_jax.bench.sizes import bench_vlm, thinned
from sttts_jax.bench.train import fresh
from sttts_jax.bench.workload import UNPRUNED, Workload
from sttts_jax.cli import bench
from sttts_jax.cli.main import run
from sttts_jax.data.schema import check_batch
from sttts_jax.models import flops
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig
from sttts_jax.models.presets import preset
from sttts_jax.pruning.staircase import stairs
from sttts_jax.train.state import init_params

HALF = Fraction(1, 2)
# Segments of one block each, and one block of language model: XLA counts the body of a loop once.
VLM = VlmConfig(
    VitConfig(
        width=256,
        heads=4,
        head_dim=64,
        mlp=1024,
        layers=3,
        patch=8,
        grid=(6, 6),
        cell=(2, 2),
        feature_layers=(2, 1),
        prune_after=0,
    ),
    ConnectorConfig(width=256, heads=4, head_dim=64, mlp=512),
    LlmConfig(width=256, layers=1, heads=4, kv_heads=2, head_dim=64, mlp=512, vocab=512),
)
TOY = ["--preset", "tiny", "--frames", "4", "--text", "8", "--rounds", "2", "--k", "0.5"]


def _bench(*words: str) -> int:
    return run("bench", bench.main, ["train", *words])


def _scores(load: Workload, fraction: Fraction, name: str = "bursty") -> np.ndarray:
    rows, cells = load.batch * load.videos, load.vlm.vit.cells
    draw = make_scores(name, 0, rows, load.frames, cells, fraction)
    return draw.reshape(load.batch, load.videos * load.frames, cells)


@pytest.mark.parametrize("fraction", [UNPRUNED, HALF], ids=["unpruned", "pruned"])
def test_a_step_costs_what_xla_counts(fraction: Fraction) -> None:
    load = Workload(VLM, frames=4, videos=1, text=12, batch=1, dtype=jnp.float32)
    model, batch = load.model(fraction, "staircase"), jax.tree.map(jnp.asarray, load.arrays(fraction))
    counts = None
    if fraction:
        batch["scores"] = jnp.asarray(_scores(load, fraction))
        counts = load.counts(_scores(load, fraction), fraction)

    def loss(params: Any) -> jax.Array:
        out = model.apply({"params": params}, batch, method="loss")
        return out.task.cross_entropy + out.aux

    bare = load.model(fraction, "staircase")
    params = jax.eval_shape(lambda key: nn.unbox(init_params(bare, load.shape(fraction), key)), jax.random.key(0))
    options = {"xla_backend_optimization_level": 0}
    counted = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options=options).cost_analysis()["flops"]
    # Rows this short meet the head as one chunk.
    parts = load.flops(fraction, counts, logits=load.shape(fraction).length)[0]
    least = row_pass_flops("train", VLM, parts, load.frames, "none")
    # The plain kernels compute every pair of a row, and slots that hold every distribution for the frames after the
    # drop; both only in attention.
    tokens, kept = load.shape(fraction).length, load.shape(fraction).length - load.text
    extra = (tokens**2 - flops.example_pairs(tokens, kept)) * VLM.llm.heads * VLM.llm.head_dim
    if counts is not None:
        slots = np.concatenate([np.full(n, c) for n, c in stairs(load.frames, load.shape(fraction).kept, 9)])
        pairs = VLM.vit.window**2 * (np.square(slots).sum() - np.square(counts).sum())
        extra += pairs * VLM.vit.heads * VLM.vit.head_dim
    want = least + 3 * 4 * extra
    # Norms, softmax, GELU and losses are what the arithmetic leaves out.
    assert want <= counted <= 1.06 * want


def test_the_bound_by_hand() -> None:
    vlm = preset("molmo2-4b")
    load = Workload(vlm, frames=64, videos=2, text=200, batch=1, dtype=jnp.bfloat16, remat="full")
    row = load.flops(UNPRUNED, None)[0]
    assert row.llm == flops.llm_flops(vlm.llm, 2 * 5384, 2 * flops.example_pairs(5384, 5184))
    assert row.llm_head == flops.head_flops(vlm.llm, 2 * 200)
    embedding = flops.patch_embedding_flops(vlm.vit, 128)
    train = row_pass_flops("train", vlm, row, 128, "full")
    blocks = row.vit_head + row.vit_tail - embedding + row.llm
    assert train == pytest.approx(2 * embedding + 4 * blocks + 3 * (row.connector + row.llm_head), rel=1e-12)
    # What the allowed pairs allow: vision tokens see each other in both directions, so that the language model gains
    # more than from causal rows; more text leaves less to gain.
    wanted = {200: (1.443, 1.675, 1.982), 2250: (1.355, 1.524, 1.733)}
    for text, ratios in wanted.items():
        rows = dataclasses.replace(load, text=text)
        whole = row_pass_flops("train", vlm, rows.flops(UNPRUNED, None)[0], 128, "full")
        for k, ratio in zip((Fraction(3, 10), Fraction(2, 5), HALF), ratios, strict=True):
            counts = rows.counts(_scores(rows, k, "uniform"), k)
            assert counts.sum() == 2 * (64 * 81 - int(64 * 81 * k))
            pruned = row_pass_flops("train", vlm, rows.flops(k, counts)[0], 128, "full")
            assert whole / pruned == pytest.approx(ratio, abs=0.003)


def test_batches_keep_the_data_contract() -> None:
    load = Workload(preset("tiny"), frames=3, videos=2, text=5, batch=2, dtype=jnp.float32)
    for fraction in (UNPRUNED, Fraction(3, 10), HALF):
        batch, shape = load.arrays(fraction), load.shape(fraction)
        check_batch(batch, shape)
        assert (batch["weights"].sum(axis=1) == 10).all()
        assert shape.length == (batch["example"][0] >= 0).sum() - 2 * int(27 * fraction)


def test_the_model_keeps_what_the_scores_of_a_batch_say() -> None:
    """What is timed is what the counts are of."""
    load = Workload(preset("tiny"), frames=4, videos=1, text=12, batch=2, dtype=jnp.float32)
    model, scores = load.model(HALF, "staircase"), _scores(load, HALF)
    batch = {**load.arrays(HALF), "scores": scores}

    @jax.jit
    def run(key: jax.Array, batch: Any) -> jax.Array:
        params = nn.unbox(init_params(model, load.shape(HALF), key))
        return model.apply({"params": params}, batch, method="prefix").vit.kept.mask

    kept = run(jax.random.key(0), batch)
    np.testing.assert_array_equal(kept.sum(axis=-1), load.counts(scores, HALF))
    assert (load.counts(scores, HALF) != load.counts(_scores(load, HALF, "uniform"), HALF)).any()


@pytest.mark.slow
def test_end_to_end(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--videos", "2", "--distributions", "uniform,adversarial", "--json", str(path), "--plot", str(plot)]
    assert _bench(*TOY, *words, "--remat", "none") == 0
    shown = capsys.readouterr().out
    assert "training step of tiny" in shown and "2 programs compiled" in shown and "no accelerator" not in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert record["sizes"]["llm"]["width"] == 96 and record["remat"] == "none" and record["reduced"] is False
    (base,), rows = record["baselines"], record["rows"]
    assert [row["distribution"] for row in rows] == ["uniform", "adversarial"]
    for row in rows:
        assert set(row) == set(base)
        assert (row["what"], row["pass"], row["k"], row["frames"], row["packing"]) == (
            "train",
            "train",
            0.5,
            4,
            "staircase",
        )
        assert row["compilations"] == 1  # both distributions together
        assert row["share"] == pytest.approx(row["speedup"] / row["bound"])
        assert row["bound"] == pytest.approx(base["flops"] / row["flops"])
        assert (row["length"], base["length"]) == (2 * (18 + 8), 2 * (36 + 8))
        assert row["peak_gib"] > 0 and row["peak_ratio"] < 1 and row["mfu"] > 0 and row["compile_s"] > 0
    assert rows[0]["bound"] != rows[1]["bound"]  # each from its own counts
    assert base["packing"] == "none" and base["speedup"] == base["bound"] == 1
    scorer = flops.scorer_parameters(preset("tiny").vit)
    assert rows[0]["parameters"] == base["parameters"] + scorer == sum(flops.parameter_counts(preset("tiny")).values())


def test_the_unpruned_model_takes_the_state_without_the_scorer() -> None:
    load = Workload(preset("tiny"), frames=2, videos=1, text=4, batch=1, dtype=jnp.float32)
    state = fresh(load, HALF)
    plain = state.given(scorer=False)
    assert "scorer" in state.given(scorer=True).params["vit"] and "scorer" not in plain.params["vit"]
    changed = jax.tree.map(lambda x: x + 1, plain)
    state.keep(changed, scorer=False)
    whole = state.given(scorer=True)
    assert int(whole.step) == 1
    np.testing.assert_array_equal(whole.params["llm"]["embedding"], changed.params["llm"]["embedding"])
    assert state.parameters(True) - state.parameters(False) == flops.scorer_parameters(load.vlm.vit)


def test_sizes() -> None:
    whole = preset("molmo2-4b")
    assert bench_vlm("molmo2-4b", reduce=False) == (whole, False)
    assert bench_vlm("tiny", reduce=True) == (preset("tiny"), False)
    small, reduced = bench_vlm("molmo2-4b", reduce=True)
    assert reduced and (small.vit.width, small.llm.width, small.connector.width) == (288, 640, 288)
    assert (small.vit.layers, small.vit.prune_after, small.llm.layers) == (5, 0, 7)
    deeper, reduced = bench_vlm("molmo2-4b", reduce=True, vit={"layers": 10}, llm={"layers": 12})
    assert reduced and (deeper.vit.layers, deeper.vit.prune_after, deeper.llm.layers) == (10, 0, 12)
    own, reduced = bench_vlm("molmo2-4b", reduce=True, vit={"width": 64, "heads": 2, "head_dim": 32}, llm={"mlp": 99})
    assert not reduced and own.connector == ConnectorConfig(width=64, heads=2, head_dim=32, mlp=99)
    half = thinned(preset("molmo2-o-7b"), HALF)
    assert half.llm.yarn is not None and max(half.llm.yarn.layers) < half.llm.layers == 16
    # What a part costs, as a share of the whole, stays about the same.
    counts = [[45.0] * 4]
    parts = []
    for vlm in (whole, thinned(whole, HALF)):
        row = dataclasses.replace(Workload(vlm, 4, 1, 200, 1, jnp.float32)).flops(HALF, np.asarray(counts))[0]
        parts.append((row.vit_tail / row.total, row.llm / row.total, row.llm_head / row.total))
    np.testing.assert_allclose(*parts, atol=0.05)


def test_memory_of_the_4b_model() -> None:
    load = Workload(preset("molmo2-4b"), frames=64, videos=2, text=2250, batch=1, dtype=jnp.bfloat16, remat="full")
    assert state_gib(load) == pytest.approx(67, abs=0.5)
    assert state_gib(load) + 15 < train_gib(load) < 125  # fits one H200, and no H100
    assert 10 < infer_gib(load) < 60


def test_reduced_width_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    # The attention's name is refused after the sizes are chosen, before anything is compiled.
    assert _bench("--frames", "2", "--attention", "none") == 2
    shown = capsys.readouterr()
    assert "no accelerator: molmo2-4b runs at a quarter of its width (ViT 288, language model 640)" in shown.out
    assert "no attention kernels are called 'none'" in shown.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--k", "0"], "--pruned_fraction 0 removes nothing"),
        (["--frames", "1"], "--frames 1 must be a whole number from 2 up"),
        (["--videos", "0"], "--videos 0 must be at least 1"),
        (["--text", "-1"], "--text -1 must be at least 1"),
        (["--llm_layers", "0"], "--llm_layers 0 must be at least 1"),
        (["--vit_layers", "2"], "--vit_layers 2 is too few"),
        (["--llm_heads", "3"], "LlmConfig.heads 3 must be a multiple of kv_heads 4"),
        (["--preset", "huge"], "No model preset is called 'huge'"),
        (["--remat", "some"], "No remat policy is called 'some'"),
        (["--distributions", "flat"], "--distributions flat is unknown"),
        (["--plot", "plot.gif"], "--plot plot.gif must end in"),
        (["--preset", "molmo2-4b", "--full_width", "--llm_layers", "4000"], "weights, moments and gradients of this"),
    ],
)
def test_bad_arguments_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STTTS_DEBUG", raising=False)
    assert _bench(*TOY, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("sttts-jax bench: error: ") and sentence in error and error.count("\n") == 1
