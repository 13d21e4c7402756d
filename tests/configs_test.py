"""The recipes in configs/: their numbers, their rows, what they cost, and that a step of them can be traced."""

import ast
import dataclasses
import functools
import importlib.util
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from sttts_jax.models.flops import RowFlops, parameter_counts
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept
from sttts_jax.train.config import MeshConfig, RunConfig
from sttts_jax.train.cost import WEIGHTS, describe, frozen_parts, full_row_flops, unpruned, update_flops
from sttts_jax.train.optimizer import FROZEN
from sttts_jax.train.recipe import FRAME_TEXT, VIDEOS, WORDS, row_length
from sttts_jax.train.state import abstract_batch, boxed_state, build_model
from sttts_jax.train.step import train_step
from sttts_jax.trees import named_leaves, param_count

ROOT = Path(__file__).parents[1]
NAMES = {
    "molmo2_4b_stts": "molmo2-4b",
    "molmo2_8b_stts": "molmo2-8b",
    "molmo2_o_7b_stts": "molmo2-o-7b",
    "siglip2_qwen3_stts": "molmo2-4b",
}
EACH = pytest.mark.parametrize("name", NAMES)


def _path(name: str) -> Path:
    return ROOT / "configs" / f"{name}.py"


def _run(name: str, arg: str = "", **sections: dict) -> RunConfig:
    spec = importlib.util.spec_from_file_location(name, _path(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    for section, values in sections.items():
        config[section].update(values)
    return RunConfig.build(config)


def test_these_are_all_recipes() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*_stts.py")} == set(NAMES)


@EACH
def test_the_docstring_says_what_it_costs(name: str) -> None:
    """After a change: print(describe(run)) gives the new lines."""
    text = ast.get_docstring(ast.parse(_path(name).read_text()))
    want = describe(_run(name)).splitlines()
    lines = [line.removeprefix("    ") for line in text.splitlines()]
    assert want[0] in lines, "\n".join(want)
    start = lines.index(want[0])
    assert lines[start:] == want, "\n".join(want)


@EACH
def test_a_step_can_be_traced(name: str) -> None:
    """Every shape of initialisation and of a whole update, without a number: parameters as counted, none lost."""
    run = _run(name)
    shape = run.data.row_shape
    model = build_model(run.model, run.pruning, shape)
    boxed, optimizer = boxed_state(run.optimizer, run.total_steps, model, shape)
    state = nn.unbox(boxed)
    assert param_count(state.params) == sum(parameter_counts(run.vlm).values())
    new, metrics = jax.eval_shape(
        functools.partial(train_step, run.loss, run.seed, model, optimizer), state, abstract_batch(shape, 2)
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    labels = named_leaves(optimizer.labels)
    assert {leaf for leaf, label in labels.items() if label == "frozen"} == {"llm/embedding"}
    assert ("llm/head" in labels) == (not run.vlm.llm.tied)


@EACH
def test_the_numbers_of_the_paper(name: str) -> None:
    run, parts = _run(name), name == "siglip2_qwen3_stts"
    o = run.optimizer
    assert run.vlm == preset(NAMES[name]) and run.vlm.llm.dropout == 0.1
    assert (run.total_steps, run.data.rows, o.warmup) == (31_000 if parts else 6_250, 64, 200)
    assert (o.llm_lr, o.vit_lr, o.connector_lr, o.scorer_lr) == (1e-5, 5e-6, 2e-4 if parts else 5e-6, 1e-4)
    assert (o.beta1, o.beta2, o.eps, o.weight_decay, o.clip_norm, o.final_fraction) == (0.9, 0.95, 1e-6, 0.0, 1.0, 0.1)
    assert (run.model.dtype, run.loss.z_loss, run.pruning.method) == ("bfloat16", 1e-4, "scorer")
    assert (run.data.max_frames, run.data.max_fps, run.data.frames_per_row) == (64, 2.0, 128)
    assert run.init_from.startswith("checkpoints/") and run.mesh == MeshConfig(-1, -1, 1, -1)
    assert f"--to orbax:{run.init_from}\n" in _path(name).read_text()


@pytest.mark.parametrize("frames", [1, 8, 64, 128, 256])
@pytest.mark.parametrize("k", ["0", "0.3", "0.5", "0.8"])
def test_rows_hold_their_videos_and_little_more(frames: int, k: str) -> None:
    length = row_length(frames, k, 81)
    needed = VIDEOS * (n_kept(frames, k, 81) + FRAME_TEXT * frames + WORDS)
    assert length % 128 == 0 and needed <= length < 1.04 * needed + 128 + 2 * 81
    run = _run("molmo2_4b_stts", f"k={k},frames={frames}")
    assert run.data.row_length == length and run.data.row_shape.items >= VIDEOS
    assert run.data.row_shape.kept >= VIDEOS * n_kept(frames, k, 81)


def test_64_frames_have_the_text_of_the_paper() -> None:
    assert FRAME_TEXT * 64 + WORDS == 2250
    assert row_length(64, "0.5", 81) - 2 * (n_kept(64, "0.5", 81) + 2250) < 256


def test_several_shares_are_buckets_of_one_run() -> None:
    run = _run("molmo2_4b_stts", "k=0.3/0.5,frames=128")
    assert run.pruning.fractions == ("0.3", "0.5") and run.pruning.fraction == "0.3"
    assert [part.pruning.removed for part in run.buckets] == ["0.3", "0.5"]
    table = describe(run).splitlines()[3:]
    assert [line[:8].strip() for line in table] == ["unpruned", "k = 0.3", "k = 0.5"]
    assert row_length(128, "0.3", 81) == run.data.row_length


def test_a_run_without_pruning_is_told_as_such() -> None:
    run = _run("molmo2_4b_stts", "method=none")
    lines = describe(run).splitlines()
    assert len(lines) == 4 and "scorer" not in lines[0] and lines[-1].startswith("unpruned")
    assert run.data.row_length == row_length(64, "0", 81)


def test_lora_is_counted_and_traced() -> None:
    """The levers of fine-tuning together: LoRA and the scorer are all that is trained."""
    lora = {"lora_rank": 16, "lora_alpha": 32.0}
    only = {"train_only": (".*_lora_[ab]", "vit/scorer/.*")}
    run = _run("molmo2_4b_stts", model=lora, optimizer=only)
    assert run.vlm.lora is not None and ", lora " in describe(run)
    shape = run.data.row_shape
    boxed, optimizer = boxed_state(run.optimizer, run.total_steps, build_model(run.model, run.pruning, shape), shape)
    params = nn.unbox(boxed).params
    counts = parameter_counts(run.vlm)
    assert param_count(params) == sum(counts.values())
    assert param_count(optimizer.trained(params)) == counts["lora"] + counts["scorer"]


def test_costs_follow_the_rows() -> None:
    run = _run("molmo2_4b_stts")
    row, whole = full_row_flops(run), full_row_flops(unpruned(run))
    assert 1.6 < whole.total / row.total < 1.91  # the limit of long videos without text, at k = 0.5
    assert whole.scorer == 0 < row.scorer and whole.llm_head == row.llm_head
    assert update_flops(run) == pytest.approx(row.total * 64 * 4)
    assert update_flops(run, ["llm"]) == pytest.approx((row.total * 4 - row.llm) * 64)
    double = dataclasses.replace(run, data=dataclasses.replace(run.data, rows=128))
    assert describe(double).splitlines()[1].startswith("128 rows")


def test_frozen_parts_are_those_without_a_trained_weight() -> None:
    labels = {
        "vit": {"scorer": {"w": "scorer"}, "blocks_00_03": {"qkv": {"kernel": FROZEN}}},
        "connector": {"q": "connector", "kv": FROZEN},
        "llm": {"embedding": FROZEN, "blocks": {"q": FROZEN, "q_lora_a": "llm"}},
    }
    assert frozen_parts(labels) == {"vit_head", "vit_tail", "llm", "llm_head"}
    assert set(WEIGHTS) == {field.name for field in dataclasses.fields(RowFlops)}
