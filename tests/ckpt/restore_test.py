"""Reading parameters and meta alone, and the `inspect` command."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ckpt import files
from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.meta import build_meta, saved_config
from sttts_jax.ckpt.restore import TreeMismatch, load_known_params, load_params, read_meta, read_tree
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.cli import inspect
from sttts_jax.mesh import make_mesh
from sttts_jax.sharding import NamedSharding, PartitionSpec

LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}


@pytest.fixture(name="workdir", scope="module")
def _workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps, saved from a mesh of 8 devices."""
    workdir = tmp_path_factory.mktemp("run")
    split = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec("fsdp"))
    manager = Manager(workdir / "checkpoints", CheckpointConfig())
    for step in (1, 2):
        params = {"vit": {"w": jax.device_put(jnp.arange(16.0) * step, split)}, "llm": {"w": jnp.ones((2, 3))}}
        meta = build_meta(step=step, config={"model": {"width": 4}}, data_layout=LAYOUT, counters={"skipped": 7})
        manager.save(step, params, {"mu": params}, None, meta)
    manager.close()
    return workdir


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/2"])
def test_any_level_of_the_directory_works(workdir: Path, place: str) -> None:
    assert read_meta(workdir / place)["step"] == 2
    np.testing.assert_array_equal(load_params(whole_step(workdir / place))["vit"]["w"], np.arange(16.0) * 2)


def test_an_older_step(workdir: Path) -> None:
    np.testing.assert_array_equal(load_params(whole_step(workdir / "checkpoints" / "1"))["vit"]["w"], np.arange(16.0))


def test_meta_carries_config_and_counters(workdir: Path) -> None:
    meta = read_meta(workdir)
    assert saved_config(meta) == {"model": {"width": 4}} and meta["counters"] == {"skipped": 7}


def test_without_a_target_arrays_come_to_one_device(workdir: Path) -> None:
    loaded = load_params(whole_step(workdir))
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(loaded)} == {1}


def test_target_gives_mesh_and_dtype(workdir: Path) -> None:
    split = NamedSharding(make_mesh({"data": 4, "tensor": 2}), PartitionSpec("tensor"))
    target = {
        "vit": {"w": jax.ShapeDtypeStruct((16,), jnp.bfloat16, sharding=split)},
        "llm": {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)},
    }
    loaded = load_params(whole_step(workdir), target)
    assert loaded["vit"]["w"].dtype == jnp.bfloat16
    assert loaded["vit"]["w"].addressable_shards[0].data.shape == (8,)
    np.testing.assert_array_equal(loaded["vit"]["w"].astype(np.float32), np.arange(16.0) * 2)


def test_wrong_target_gives_a_table(workdir: Path) -> None:
    target = {"vit": {"w": jax.ShapeDtypeStruct((17,), jnp.float32)}, "scorer": jax.ShapeDtypeStruct((1,), jnp.float32)}
    with pytest.raises(TreeMismatch) as error:
        load_params(whole_step(workdir), target)
    rows = {line.split()[0]: line.split()[1:] for line in str(error.value).splitlines()[2:]}
    assert rows["vit/w"] == ["float32[17]", "float32[16]"] or "[17]" in str(error.value)
    assert "scorer" in rows and "llm/w" in rows


def test_leaves_that_may_be_missing_are_named_and_the_rest_is_loaded(workdir: Path) -> None:
    split = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec("fsdp"))
    target = {
        "vit": {
            "w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=split),
            "new": jax.ShapeDtypeStruct((9,), "float32"),
        },
        "llm": {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)},
    }
    step = files.resolve_step(workdir)
    loaded, lacking = load_known_params(step, target, ("vit/new", "llm/.*"))
    assert lacking == ["vit/new"] and set(loaded) == {"vit/w", "llm/w"}
    assert loaded["llm/w"].dtype == jnp.bfloat16 and loaded["vit/w"].sharding == split
    np.testing.assert_array_equal(loaded["vit/w"], np.arange(16.0) * 2)
    with pytest.raises(TreeMismatch, match="vit/new"):
        load_known_params(step, target, ("llm/.*",))
    with pytest.raises(TreeMismatch, match="llm/w"):  # what the model lacks is never left behind
        load_known_params(step, {"vit": target["vit"]}, ("vit/new", "llm/.*"))


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        load_params(whole_step(tmp_path))


def test_evaluation_passes_over_a_short_step_and_moves_nothing(tmp_path: Path) -> None:
    manager = Manager(tmp_path, CheckpointConfig())
    for step in (1, 2):
        meta = build_meta(step=step, config={}, data_layout=LAYOUT, counters={})
        manager.save(step, {"w": jnp.ones(4) * step}, {"m": jnp.ones(1)}, None, meta)
    manager.close()
    next((tmp_path / "2" / "params" / "d").iterdir()).write_bytes(b"")
    assert read_meta(tmp_path)["step"] == 1
    assert float(load_params(whole_step(tmp_path))["w"][0]) == 1
    assert files.list_steps(tmp_path) == [1, 2]


def test_trees_are_read_without_arrays(workdir: Path) -> None:
    assert read_tree(workdir / "checkpoints" / "2", "params")["vit"]["w"] == jax.ShapeDtypeStruct((16,), jnp.float32)
    with pytest.raises(TreeMismatch, match="holds no 'ema'"):
        read_tree(workdir / "checkpoints" / "2", "ema")


def test_inspect_prints_everything(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(workdir)]) == 0
    text = capsys.readouterr().out
    for part in (
        "whole, arrays unread",
        "vit/w",
        "float32[16]",
        "model.width",
        "counters.skipped",
        "data_layout.processes",
        "total",
    ):
        assert part in text, part


def test_inspect_folds(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.main([str(workdir), "--depth", "1"])
    assert "vit/..." in capsys.readouterr().out


def test_inspect_says_what_is_broken(workdir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import shutil

    copy: Any = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "checkpoints" / "2" / "meta" / "data.json").write_text("{")
    inspect.main([str(copy)])
    text = capsys.readouterr().out
    assert "the file meta/data.json has 1 bytes instead of" in text and "checkpoints/1\n" in text
