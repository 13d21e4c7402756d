"""Configs: strict keys, every key has a reader, every file in configs/ builds and shape-evaluates."""

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
from pathlib import Path

import jax
import pytest

from sttts_jax.cli import train as train_cli
from sttts_jax.models.lora import LoraConfig
from sttts_jax.models.overrides import overrides_of
from sttts_jax.models.presets import preset
from sttts_jax.train.config import DERIVED_DATA, LORA_TARGETS, SCALARS, SECTIONS, ModelConfig, RunConfig, defaults
from sttts_jax.train.recipe import parse_arg
from sttts_jax.train.state import boxed_state, build_model

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_builds_and_shape_evaluates(path):
    config = _load(path).get_config()
    run = RunConfig.build(config)
    shape = run.data.row_shape
    state, optimizer = boxed_state(run.optimizer, run.total_steps, build_model(run.model, run.pruning, shape), shape)
    assert len(jax.tree.leaves(state.params)) > 10
    assert set(jax.tree.leaves(optimizer.labels)) >= {"llm", "vit", "connector"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_says_its_command(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"sttts-jax train --config configs/{path.name}" in text


def _attributes_read(directory: Path) -> set[str]:
    names = set()
    for file in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
    return names


def test_every_config_key_has_a_reader():
    read = _attributes_read(ROOT / "sttts_jax")
    keys = {f"{name}.{f.name}" for name, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    # The mesh goes to make_mesh as a whole (dataclasses.asdict); its keys are the axis names.
    unread = {key for key in keys if key.split(".")[1] not in read and not key.startswith("mesh.")}
    assert not unread
    assert {f.name for f in dataclasses.fields(SECTIONS["mesh"])} == {"data", "fsdp", "tensor", "sequence"}
    assert set(SCALARS) == {"seed", "total_steps", "tokenizer", "init_from", "compile_cache"} <= read


def _meanings(kind: type) -> dict[str, str]:
    """The lines `name    meaning` of a docstring; further lines of a meaning are indented."""
    found = re.findall(r"^ *(\w+)  +(\S.*(?:\n {12,}\S.*)*)", inspect.cleandoc(kind.__doc__), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


@pytest.mark.parametrize("name", ["", *SECTIONS])
def test_every_key_has_a_meaning(name):
    """One line each in the docstring of its section, and no line is of a key that does not exist."""
    kind = SECTIONS[name] if name else RunConfig
    others = {"": tuple(SECTIONS), "data": DERIVED_DATA}.get(name, ())
    assert list(_meanings(kind)) == [f.name for f in dataclasses.fields(kind) if f.name not in others]


def test_defaults_hold_every_key_and_build():
    config = defaults()
    for name, kind in SECTIONS.items():
        missing = {f.name for f in dataclasses.fields(kind)} - set(config[name])
        assert missing == ({"image_size", "grid", "cells", "fraction"} if name == "data" else set())
    run = RunConfig.build(config)
    assert run.data.cells == run.vlm.vit.cells and run.data.fraction == run.pruning.fraction


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("pruning.method", "scorre", "pruning.method='scorre' is unknown; choose one of scorer"),
        ("pruning.fraction", "1.5", "out of range"),
        ("pruning.refill", True, "needs pruning.packing='bins'"),
        ("model.preset", "molmo3", "molmo3"),
        ("model.overrides", {"llm": {"layer": 2}}, "model.overrides.llm has no key 'layer'; did you mean 'layers'"),
        ("model.overrides", {"vit": {"prune_after": 2}}, "a block must follow it"),
        ("pruning.fractions", ("0.5", "0.50"), "names a share twice"),
        ("pruning.fractions", ("0.5", "1.5"), "out of range"),
        ("optimizer.train_only", ("(",), "is no regular expression"),
        ("model.lora_rank", -1, "LoRA rank -1 must be at least 1"),
        ("model.dtype", "fp8", "model.dtype='fp8' is unknown"),
        ("model.remat", "some", "remat policy"),
        ("loss.accumulate", 3, "does not divide by loss.accumulate=3"),
        ("data.row_length", 8, "has no room for text"),
        ("optimizer.warmup", 5000, "does not end before"),
        ("optimizer.clip_norm", -1.0, "optimizer.clip_norm=-1.0 must not be negative"),
        ("evaluation.every", 10, "evaluation.every=10 asks for evaluation.tasks"),
        ("evaluation.batch", 0, "evaluation.batch=0 must be at least 1"),
        ("evaluation.max_frames", 10**6, "evaluation.max_frames=1000000 must be at most 16,384"),
        ("data.frames_per_row", 10**6, "data.frames_per_row=1000000 must be at most 16,384"),
        ("evaluation.fraction", "1.5", "evaluation.fraction=1.5 is out of range"),
        ("mesh.tensor", 3, "mesh.tensor x mesh.sequence = 3 must divide the 2 heads of the vision transformer and"),
        ("mesh.sequence", 4, "mesh.tensor x mesh.sequence = 4 must divide the 2 heads of the vision transformer and"),
        ("mesh.tensor", 0, "mesh axis sizes {'tensor': 0} are not positive"),
        ("watchdog.step_s", -2.0, "must not be negative; use 0 for none"),
        ("log.every", 0, "log.every and log.histogram_every must be at least 1"),
        ("checkpoint.best_metric", "loss", "'loss' is not measured; set evaluation.every and evaluation.tasks"),
        ("total_steps", 0, "total_steps=0"),
    ],
)
def test_bad_values_are_one_sentence(path, value, sentence):
    config = defaults()
    *sections, key = path.split(".")
    target = config
    for name in sections:
        target = target[name]
    target[key] = value
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RunConfig.build(config)


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("data", {"max_frames": 9, "frames_per_row": 9}, "frames_per_row=9 does not divide over mesh.sequence=2; use"),
        ("pruning", {"packing": "bins"}, "cannot share rows out over mesh.sequence=2; use 'staircase'"),
    ],
)
def test_rows_that_sequence_cannot_share_out_are_refused(section: str, values: dict, sentence: str) -> None:
    """In a config that names its size; where it is open, as soon as the devices are known."""
    config = defaults()
    config[section].update(values)
    run = RunConfig.build(config)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run.check_mesh({"tensor": 1, "sequence": 2})
    config.mesh.sequence = 2
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RunConfig.build(config)


def test_overrides_come_from_files_json_and_the_command_line():
    """The empty default survives the flags; nested dicts, lists and JSON give the same sizes."""
    file = str(ROOT / "configs" / "demo.py")
    words = ["--config", file, "--workdir", "x"]
    assert RunConfig.build(train_cli._parse(words)[0]).vlm == preset("tiny")
    changes = {"llm": {"layers": 2}, "vit": {"feature_layers": [1, 0]}}
    config, _ = train_cli._parse([*words, f"--config.model.overrides={changes}"])
    for tree in (config, config.to_dict(), json.loads(json.dumps(config.to_dict()))):
        vlm = RunConfig.build(tree).vlm
        assert (vlm.llm.layers, vlm.vit.feature_layers) == (2, (1, 0))
        assert overrides_of(vlm, "tiny") == changes


def test_lora_follows_the_rank():
    config = defaults()
    assert RunConfig.build(config).vlm.lora is None
    config.model.lora_rank, config.model.lora_alpha = 2, 8.0
    for tree in (config, json.loads(json.dumps(config.to_dict()))):
        run = RunConfig.build(tree)
        assert run.vlm.lora == LoraConfig(2, 8.0, LORA_TARGETS) and run.vlm.llm == preset("tiny").llm
        assert overrides_of(run.vlm, "tiny") == {}
    config.model.lora_targets = ("llm/blocks/qq",)
    with pytest.raises(ValueError, match="'llm/blocks/qq' matches no projection"):
        RunConfig.build(config)


def test_a_saved_config_of_before_the_newer_keys_builds():
    tree = defaults().to_dict()
    for section, key in (("model", "overrides"), ("pruning", "fractions"), ("optimizer", "train_only")):
        del tree[section][key]
    del tree["init_from"]
    assert RunConfig.build(tree).buckets[0].vlm == preset("tiny")


def test_fractions_are_refused_where_nothing_is_removed():
    for method in ("none", "soft_only"):
        config = defaults()
        config.pruning.method, config.pruning.fractions = method, ("0.3", "0.5")
        with pytest.raises(ValueError, match="pruning.fractions has no meaning"):
            RunConfig.build(config)
    tree = defaults().to_dict()
    tree["pruning"]["fractions"] = "0.5"
    with pytest.raises(ValueError, match="must be a list"):
        RunConfig.build(tree)


def test_the_best_metric_is_measured_at_every_save():
    config = defaults()
    config.evaluation.update(every=100, tasks=("a", "b"))
    config.checkpoint.update(every=200, best_metric="eval/b/accuracy")
    assert RunConfig.build(config).evaluation.accuracies == {"a": "eval/a/accuracy", "b": "eval/b/accuracy"}
    config.checkpoint.best_metric = "eval/c/accuracy"
    with pytest.raises(ValueError, match="choose one of eval/a/accuracy, eval/b/accuracy"):
        RunConfig.build(config)
    config.checkpoint.update(every=150, best_metric="eval/a/accuracy")
    with pytest.raises(ValueError, match=r"checkpoint.every=150 must be a multiple of evaluation.every=100"):
        RunConfig.build(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_takes_k(path):
    """One share, or several of which each step draws one."""
    for k, fractions in (("0.3", ()), ("0.3/0.5", ("0.3", "0.5"))):
        run = RunConfig.build(_load(path).get_config(f"k={k}"))
        assert (run.pruning.fraction, run.pruning.fractions) == ("0.3", fractions)
        assert [part.pruning.fraction for part in run.buckets] == list(fractions or ("0.3",))
        assert run.data.row_length == RunConfig.build(_load(path).get_config("k=0.3")).data.row_length


def test_a_bucket_without_room_is_named():
    config = defaults()
    config.data.row_length, config.pruning.fractions = 60, ("0.5", "0.9")
    with pytest.raises(ValueError, match=r"pruning.fractions, rows at 0.9: data.row_length"):
        RunConfig.build(config)


def test_buckets_have_the_same_room_for_text():
    config = defaults()
    assert [run.pruning.fraction for run in RunConfig.build(config).buckets] == ["0.5"]
    config.pruning.fractions = ("0", "0.3", "0.5")
    run = RunConfig.build(config)
    shapes = [bucket.data.row_shape for bucket in run.buckets]
    assert [shape.fraction for shape in shapes] == ["0", "0.3", "0.5"]
    assert {shape.length - shape.kept for shape in shapes} == {run.data.row_shape.length - run.data.row_shape.kept}
    assert shapes[2] == run.data.row_shape
    assert all(bucket.buckets == (bucket,) for bucket in run.buckets)


def test_unknown_keys_name_the_nearest():
    tree = defaults().to_dict()
    tree["pruning"]["fractoin"] = "0.5"
    with pytest.raises(ValueError, match="did you mean 'fraction'"):
        RunConfig.build(tree)
    tree = defaults().to_dict()
    tree["data"]["cells"] = 81
    with pytest.raises(ValueError, match="follows from model.preset"):
        RunConfig.build(tree)


def test_parse_arg_is_strict_and_typed():
    args = parse_arg("steps=5,method=random,cache=true", steps=1, method="scorer", cache=False)
    assert (args.steps, args.method, args.cache) == (5, "random", True)
    for bad, sentence in (("step=5", "did you mean 'steps'"), ("steps=x", "must be a int"), ("steps", "has no value")):
        with pytest.raises(ValueError, match=sentence):
            parse_arg(bad, steps=1)


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().preset = "x"  # type: ignore[misc]
