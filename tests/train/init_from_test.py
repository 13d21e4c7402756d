"""Where parameters come from: resume before init_from before fresh, and what init_from refuses."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import sttts_jax.train.init_from as init_from
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.restore import META, PARAMS, TreeMismatch, saving_context
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.mesh import make_mesh
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.main import main as train
from sttts_jax.train.state import Blueprint, blueprint, build_model, fresh_state, init_params
from sttts_jax.train.tokenizer import run_tokenizer
from sttts_jax.trees import named_leaves
from tests.ckpt.damage import flip_a_bit
from tests.tiny import tiny_config

LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
SMALL = {"llm": {"layers": 2, "dropout": 0.1}}


def _config(method: str = "scorer", **settings: Any) -> Any:
    config = defaults()
    config.model.overrides, config.pruning.method = SMALL, method
    for key, value in settings.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return config


def _write(directory: Path, method: str = "none", **settings: Any) -> dict[str, np.ndarray]:
    """A directory as a conversion leaves it: bfloat16 parameters, no moments; returns them as float32."""
    config = _config(method, **settings)
    run = RunConfig.build(config)
    shape = run.data.row_shape
    model = build_model(run.model, run.pruning, shape)
    params = jax.jit(lambda key: nn.unbox(init_params(model, shape, key)))(jax.random.key(7))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _save(directory, config, params)
    return {name: np.asarray(x.astype(jnp.float32)) for name, x in named_leaves(params).items()}


def _save(directory: Path, config: Any, params: Any) -> None:
    meta = build_meta(step=0, config=config.to_dict(), data_layout=LAYOUT, counters={})
    with saving_context():
        ocp.save_checkpointables(directory / "checkpoints" / "0", {PARAMS: params, META: meta})
    train_tokenizer(["what colour was it? red green"], directory / "tokenizer", RunConfig.build(config).vlm.llm.vocab)


@pytest.fixture(name="released", scope="module")
def _released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    directory = tmp_path_factory.mktemp("released")
    return directory, _write(directory)


def _initial(config: Any, axes: dict[str, int] | None = None) -> tuple[Any, str, Blueprint]:
    run = RunConfig.build(config)
    mesh = make_mesh(axes or {"data": 1}, None if axes else jax.devices()[:1])
    with jax.set_mesh(mesh):
        plan = blueprint(run, mesh, min_size=1)  # parameters of any size are split
        state, origin = init_from.state_from(run.init_from, plan, run.seed)
    return state, origin, plan


def test_parameters_come_sharded_as_float32_and_the_scorer_fresh(released: Any) -> None:
    """Each leaf lies as the plan says, the fresh ones hold what a fresh run would, and moments are zero."""
    directory, saved = released
    config = _config(init_from=str(directory))
    state, origin, plan = _initial(config, {"data": 2, "fsdp": 2, "tensor": 2})
    leaves = named_leaves(state.params)
    fresh = named_leaves(fresh_state(plan, RunConfig.build(config).seed).params)
    assert {name for name in leaves if name not in saved} == {n for n in leaves if n.startswith("vit/scorer/")}
    for name, leaf in leaves.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, saved.get(name, fresh[name]), err_msg=name)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(plan.shardings), strict=True):
        assert got.sharding.is_equivalent_to(want, got.ndim)
    assert any(not leaf.sharding.is_fully_replicated for leaf in leaves.values())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt)) and int(state.step) == 0
    assert str(directory / "checkpoints" / "0") in origin and "vit/scorer/fc1/kernel" in origin
    assert "llm" not in origin.split("fresh:")[1]


def test_only_the_missing_leaves_are_computed(released: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that makes them returns nothing else, and plans no room for anything of the size of the model."""
    compiled = []
    real = jax.jit

    def watched(function: Any, **settings: Any) -> Any:
        def call(*args: Any) -> Any:
            compiled.append(real(function, **settings).lower(*args).compile())
            return compiled[-1](*args)

        return call

    monkeypatch.setattr(init_from.jax, "jit", watched)
    state, _, _ = _initial(_config(init_from=str(released[0])))
    scorer = sum(x.nbytes for name, x in named_leaves(state.params).items() if name.startswith("vit/scorer/"))
    stats = compiled[0].memory_analysis()
    assert stats.output_size_in_bytes < 1.1 * scorer + 4096 and stats.temp_size_in_bytes < 2 * scorer


def test_a_checkpoint_with_everything_needs_nothing_fresh(tmp_path: Path) -> None:
    saved = _write(tmp_path, "scorer")
    state, origin, _ = _initial(_config(init_from=str(tmp_path / "checkpoints" / "0")))
    assert origin.endswith("fresh: none")
    for name, leaf in named_leaves(state.params).items():
        np.testing.assert_array_equal(leaf, saved[name])


def test_a_damaged_newest_step_is_passed_over(released: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    steps = Path(shutil.copytree(released[0], tmp_path / "two")) / "checkpoints"
    shutil.copytree(steps / "0", steps / "1")
    flip_a_bit(steps / "1")
    state, origin, _ = _initial(_config(init_from=str(tmp_path / "two")))
    assert f"parameters from {steps / '0'}" in origin
    assert f"checkpoint step 1 in {steps} is damaged" in caplog.text and "step 0 is used in its place" in caplog.text
    np.testing.assert_array_equal(state.params["llm"]["embedding"], released[1]["llm/embedding"])


def test_lora_and_scorer_are_fresh_and_start_as_the_checkpoint(released: Any, tmp_path: Path) -> None:
    """B is zero; only they train; a checkpoint of that run opens with its own LoRA."""
    directory, saved = released
    config = _config(
        init_from=str(directory), model__lora_rank=2, optimizer__train_only=("vit/scorer/.*", ".*_lora_[ab]")
    )
    state, origin, plan = _initial(config)
    leaves = named_leaves(state.params)
    added = {name for name in leaves if name not in saved}
    lora = {name for name in added if name.endswith(("_lora_a", "_lora_b"))}
    assert {"llm/blocks/q_lora_a", "llm/blocks/gate_up_lora_b"} < lora and any(name.startswith("vit/") for name in lora)
    assert all(name.startswith("vit/scorer/") for name in added - lora)
    assert all(np.any(leaves[name]) == name.endswith("_a") for name in lora)
    assert set(named_leaves(plan.optimizer.trained(state.params))) == added
    assert set(plan.optimizer.groups) == {"llm", "vit", "scorer"}
    assert all(name in origin.split("fresh:")[1] for name in added)
    _save(tmp_path, config, state.params)
    opened = named_leaves(read_checkpoint(tmp_path).load(make_mesh({"data": 1}, jax.devices()[:1])))
    jax.tree.map(np.testing.assert_array_equal, opened, leaves)


def test_other_shapes_are_a_table(released: Any, tmp_path: Path) -> None:
    other = {"llm": {"layers": 2, "mlp": 100}}
    with pytest.raises(TreeMismatch, match=r"llm/blocks/down .*100.*192"):
        _initial(_config(init_from=str(released[0]), model__overrides=other))
    _write(tmp_path, "scorer")
    with pytest.raises(TreeMismatch, match=r"vit/scorer/fc1/kernel +- "):  # nothing may be left out
        _initial(_config("none", init_from=str(tmp_path)))


def test_the_same_arrays_under_other_sizes_are_refused(released: Any) -> None:
    other = {"llm": {"layers": 2, "dropout": 0.0, "rope_theta": 5e5}}
    with pytest.raises(ValueError, match=r"(?s)give them in model.overrides.*llm.rope_theta +1000000.0 +500000.0$"):
        _initial(_config(init_from=str(released[0]), model__overrides=other))


def test_a_place_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        run_tokenizer(RunConfig.build(_config(init_from=str(tmp_path / "nothing"))), Workdir(tmp_path / "run"))


def test_the_tokenizer_comes_along(released: Any, tmp_path: Path) -> None:
    directory, _ = released
    run = RunConfig.build(_config(init_from=str(directory)))
    text = "what colour was it? red"
    want = Tokenizer.load(directory / "tokenizer").encode(text)
    assert run_tokenizer(run, Workdir(tmp_path / "run")).encode(text) == want
    own = dataclasses.replace(run, init_from="/nowhere")  # the workdir has it now
    assert run_tokenizer(own, Workdir(tmp_path / "run")).encode(text) == want
    shutil.copytree(directory / "checkpoints", tmp_path / "bare" / "checkpoints")
    with pytest.raises(ValueError, match="holds no tokenizer.json; set `tokenizer`"):
        run_tokenizer(dataclasses.replace(run, init_from=str(tmp_path / "bare")), Workdir(tmp_path / "other"))


def test_a_converted_directory_opens_as_a_run_does(released: Any) -> None:
    directory, saved = released
    subject = read_checkpoint(directory)
    assert subject.step == 0 and subject.vlm.llm.layers == 2
    params = subject.load(make_mesh({"data": 1}, jax.devices()[:1]))
    for name, leaf in named_leaves(params).items():
        np.testing.assert_array_equal(leaf, saved[name])


def test_a_run_starts_from_another_and_resumes_without_it(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The real loop, fine-tuning the scorer alone from a run that had none; then the source is deleted."""
    source, workdir = tmp_path / "source", tmp_path / "run"
    first = train(tiny_config(clips, total_steps=3, pruning__method="none"), str(source))
    settings = {"total_steps": 4, "init_from": str(source), "optimizer__train_only": ("vit/scorer/.*",)}
    with caplog.at_level(logging.INFO):
        second = train(tiny_config(clips, **settings), str(workdir))
    assert f"parameters from {source / 'checkpoints' / '3'}" in capsys.readouterr().out
    before, after = named_leaves(first.params), named_leaves(second.params)
    for name, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[name], err_msg=name)
    shutil.rmtree(source)
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "checkpoints" / "sizes" / "4.json").unlink()
    third = train(tiny_config(clips, **settings), str(workdir))
    assert "resumed from step 2" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(second.params), jax.device_get(third.params))
