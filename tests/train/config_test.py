"""Configs: strict keys, every key has a reader, every file in configs/ builds and shape-evaluates."""

import ast
import dataclasses
import importlib.util
from pathlib import Path

import jax
import pytest

from sttts_jax.train.config import SECTIONS, ModelConfig, RunConfig, defaults, parse_arg
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
    state, optimizer = boxed_state(run, build_model(run, shape), shape)
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
    assert {"seed", "total_steps", "tokenizer"} <= read


def test_defaults_hold_every_key_and_build():
    config = defaults()
    for name, kind in SECTIONS.items():
        missing = {f.name for f in dataclasses.fields(kind)} - set(config[name])
        assert missing == ({"image_size", "cells", "fraction"} if name == "data" else set())
    run = RunConfig.build(config)
    assert run.data.cells == run.vlm.vit.cells and run.data.fraction == run.pruning.fraction


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("pruning.method", "scorre", "pruning.method='scorre' is unknown; choose one of scorer"),
        ("pruning.fraction", "1.5", "out of range"),
        ("pruning.refill", True, "needs pruning.packing='bins'"),
        ("model.preset", "molmo3", "molmo3"),
        ("model.dtype", "fp8", "model.dtype='fp8' is unknown"),
        ("model.remat", "some", "remat policy"),
        ("loss.accumulate", 3, "does not divide by loss.accumulate=3"),
        ("data.row_length", 8, "has no room for text"),
        ("optimizer.warmup", 5000, "does not end before"),
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
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        RunConfig.build(config)


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
