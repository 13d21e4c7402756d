"""Saving while training, resuming exactly, going back past damaged steps, refusing what is another run."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sttts_jax.ckpt import files
from sttts_jax.ckpt.manager import CheckpointConfig, CheckpointError, Manager
from sttts_jax.ckpt.meta import ConfigMismatch, FormatMismatch, build_meta, check_config
from sttts_jax.ckpt.restore import TreeMismatch, load_params, read_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.paths import as_path, list_objects
from sttts_jax.sharding import NamedSharding, PartitionSpec
from tests.fake_gcs import FakeGcs
from tests.full_disk import full_disk

CONFIG = {"model": {"width": 4, "name": "tiny"}, "steps": 100, "log": {"every": 5}, "mesh": {"data": 1}}
LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
TX = optax.partition({"a": optax.adam(1e-2), "frozen": optax.set_to_zero()}, {"w": "a", "deep": {"b": "frozen"}})


def params() -> dict[str, Any]:
    return {"w": jnp.arange(32.0).reshape(8, 4), "deep": {"b": jnp.ones(3)}}


def batches() -> Any:
    return iter(grain.MapDataset.range(1000).shuffle(seed=1).to_iter_dataset())


def abstract(tree: Any, mesh: jax.sharding.Mesh | None = None) -> Any:
    def leaf(x: jax.Array) -> jax.ShapeDtypeStruct:
        split = mesh is not None and x.shape and x.shape[0] % 2 == 0
        sharding = NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec()) if mesh else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


def meta(step: int, config: Any = CONFIG) -> dict[str, Any]:
    return build_meta(step=step, config=config, data_layout=LAYOUT, counters={"skipped": 0})


@jax.jit
def _step(state: tuple[Any, Any], x: jax.Array) -> tuple[Any, Any]:
    p, opt = state
    grads = jax.grad(lambda q: jnp.sum((q["w"] * (1 + x) - x) ** 2) + jnp.sum(q["deep"]["b"]))(p)
    updates, opt = TX.update(grads, opt, p)
    return optax.apply_updates(p, updates), opt


def train(
    manager: Manager, state: tuple[Any, Any], iterator: Any, first: int, last: int
) -> tuple[tuple[Any, Any], list[int]]:
    seen = []
    for step in range(first, last + 1):
        manager.raise_if_failed()
        seen.append(int(next(iterator)))
        state = _step(state, jnp.float32(seen[-1]) / 1000)
        if manager.should_save(step):
            manager.save(step, *state, iterator, meta(step))
    return state, seen


def run(directory: Path, last: int = 6, **config: Any) -> tuple[tuple[Any, Any], list[int]]:
    manager = Manager(directory, CheckpointConfig(**({"every": 2, "keep": 3} | config)))
    result = train(manager, (params(), TX.init(params())), batches(), 1, last)
    manager.close()
    return result


def restore(directory: Path, mesh: Any = None, config: Any = CONFIG, iterator: Any = None) -> Any:
    manager = Manager(directory, CheckpointConfig(every=2))
    found = manager.restore_latest(
        abstract(params(), mesh), abstract(TX.init(params()), mesh), iterator or batches(), config=config
    )
    manager.close()
    return found


def assert_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_resume_equals_an_unbroken_run(tmp_path: Path) -> None:
    whole, seen = run(tmp_path / "whole", last=10)
    run(tmp_path / "cut", last=5)
    manager, iterator = Manager(tmp_path / "cut", CheckpointConfig(every=2)), batches()
    found = manager.restore_latest(abstract(params()), abstract(TX.init(params())), iterator, config=CONFIG)
    assert found.step == 4 and found.meta["counters"] == {"skipped": 0}
    state, rest = train(manager, (found.params, found.opt), iterator, 5, 10)
    manager.close()
    assert rest == seen[4:]
    assert_equal(state, whole)


def test_eight_four_one_and_eight_devices_hold_the_same_bits(tmp_path: Path) -> None:
    """Parameters and optimizer state, saved by each and restored by the next."""
    (trained, opt), _ = run(tmp_path / "1", last=2)
    state = jax.device_get((trained, opt))
    for number, devices in enumerate((8, 4, 1, 8), 1):
        found = restore(tmp_path / str(number), make_mesh({"fsdp": devices}, jax.devices()[:devices]))
        assert len(found.params["w"].sharding.device_set) == devices
        assert_equal(jax.device_get((found.params, found.opt)), state)
        manager = Manager(tmp_path / str(number + 1), CheckpointConfig())
        manager.save(2, found.params, found.opt, batches(), meta(2))
        manager.close()


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert restore(tmp_path) is None


def test_newest_are_kept_and_sizes_recorded(tmp_path: Path) -> None:
    run(tmp_path, last=10, keep=2)
    assert files.list_steps(tmp_path) == [8, 10]
    assert sorted(file.name for file in (tmp_path / "sizes").iterdir()) == ["10.json", "8.json"]
    assert not files.problem_of(tmp_path, 10)


def _saved(directory: Path, accuracies: dict[int, float | None], **config: Any) -> list[int]:
    """The steps that are left after saving at these, each with its accuracy if it was evaluated."""
    manager = Manager(directory, CheckpointConfig(**{"every": 1, "keep": 1, "best_metric": "accuracy", **config}))
    for step, accuracy in accuracies.items():
        metrics = None if accuracy is None else {"accuracy": accuracy, "loss": 1.0}
        manager.save(step, params(), TX.init(params()), batches(), meta(step), metrics)
    manager.close()
    return manager.steps


def test_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    assert _saved(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2}) == [2, 4]
    assert not files.problem_of(tmp_path, 2)


def test_best_of_those_that_were_evaluated(tmp_path: Path) -> None:
    assert _saved(tmp_path, {1: 0.1, 2: None, 3: 0.9, 4: None, 5: 0.2, 6: None, 7: None}, keep=2) == [3, 6, 7]


def test_of_equal_steps_the_last_is_the_best(tmp_path: Path) -> None:
    assert _saved(tmp_path, {1: 0.5, 2: 0.5, 3: 0.1}) == [2, 3]


def test_best_survives_a_restart_which_goes_on_from_the_newest(tmp_path: Path) -> None:
    assert _saved(tmp_path, {2: 0.9, 4: 0.3, 6: None}) == [2, 6]
    assert restore(tmp_path).step == 6
    assert _saved(tmp_path, {8: 0.8, 10: 0.1}) == [2, 10]
    assert _saved(tmp_path, {12: 1.0, 14: None}) == [12, 14]


def test_steps_saved_for_another_metric_count_for_nothing(tmp_path: Path) -> None:
    assert _saved(tmp_path, {1: 0.9, 2: None}) == [1, 2]
    assert _saved(tmp_path, {3: 0.5, 4: None}, best_metric="loss") == [3, 4]


def test_a_best_metric_that_no_evaluation_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="best_metric='acuracy' is not a metric .* choose one of: accuracy, loss"):
        _saved(tmp_path, {1: 0.9}, best_metric="acuracy")
    assert files.list_steps(tmp_path) == []


def test_saving_a_step_twice_is_refused_quietly(tmp_path: Path) -> None:
    manager = Manager(tmp_path, CheckpointConfig())
    assert manager.save(3, params(), TX.init(params()), None, meta(3))
    assert not manager.save(3, params(), TX.init(params()), None, meta(3))
    manager.close()


def test_donating_the_state_after_save_does_not_change_the_file(tmp_path: Path) -> None:
    big = {"w": jnp.arange(4.0e5), "deep": {"b": jnp.ones(3)}}
    manager = Manager(tmp_path, CheckpointConfig())
    manager.save(1, big, TX.init(params()), None, meta(1))
    wipe = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for _ in range(5):
        big = wipe(big)
    jax.block_until_ready(big)
    manager.close()
    np.testing.assert_array_equal(load_params(whole_step(tmp_path))["w"], np.arange(4.0e5, dtype=np.float32))


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_loads_onto_another_mesh(tmp_path: Path, axes: dict[str, int]) -> None:
    state, _ = run(tmp_path)
    mesh = make_mesh(axes)
    with jax.set_mesh(mesh):
        found = restore(tmp_path, mesh)
    assert_equal((found.params, found.opt), state)
    assert found.params["w"].sharding.mesh.shape == mesh.shape
    assert found.params["w"].addressable_shards[0].data.shape == (8 // axes["fsdp"], 4)


def _kinds(step: Path) -> dict[str, Path]:
    """A file of the step under a name that is the same in every run (array files have random names)."""
    found = [file for file in sorted(step.rglob("*")) if file.is_file()]
    return {re.sub(r"[0-9a-f]{32}", "*", str(file.relative_to(step))): file for file in found}


def test_truncating_any_file_of_the_newest_step_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "whole", last=4)
    kinds = list(_kinds(tmp_path / "whole" / "4"))
    assert {"meta/data.json", "params/d/*", "opt/manifest.ocdbt", "data/process_0-of-1.json"} <= set(kinds)
    for number, kind in enumerate(kinds):
        directory = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "whole", directory)
        victim = _kinds(directory / "4")[kind]
        os.truncate(victim, victim.stat().st_size // 2)
        caplog.clear()
        assert restore(directory).step == 2, kind
        assert "checkpoint step 4" in caplog.text and "is damaged" in caplog.text
        assert "step 2 is used in its place" in caplog.text
        assert files.list_steps(directory) == [2] and (directory / "broken" / "4.1").is_dir()


@pytest.mark.parametrize(
    "victim", ["_CHECKPOINT_METADATA", "meta/data.json", "params/_METADATA", "params/manifest.ocdbt"]
)
def test_damage_shows_without_a_record_of_sizes(tmp_path: Path, victim: str) -> None:
    """The process may die between the commit and the record."""
    run(tmp_path, last=4)
    (tmp_path / "sizes" / "4.json").unlink()
    (tmp_path / "4" / victim).write_bytes(b"")
    assert restore(tmp_path).step == 2


def test_truncated_arrays_show_without_a_record_of_sizes(tmp_path: Path) -> None:
    run(tmp_path, last=4)
    (tmp_path / "sizes" / "4.json").unlink()
    for file in (tmp_path / "4" / "params" / "d").iterdir():
        os.truncate(file, file.stat().st_size // 2)
    assert restore(tmp_path).step == 2


def test_after_a_fallback_the_broken_step_is_saved_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", last=6)
    run(tmp_path / "run", last=4)
    (tmp_path / "run" / "4" / "meta" / "data.json").write_text("{")
    manager, iterator = Manager(tmp_path / "run", CheckpointConfig(every=2)), batches()
    found = manager.restore_latest(abstract(params()), abstract(TX.init(params())), iterator, config=CONFIG)
    state, _ = train(manager, (found.params, found.opt), iterator, found.step + 1, 6)
    manager.close()
    assert_equal(state, whole)
    assert files.list_steps(tmp_path / "run") == [2, 4, 6] and not files.problem_of(tmp_path / "run", 4)


def test_no_whole_step_left_is_an_error_that_lists_them(tmp_path: Path) -> None:
    run(tmp_path, last=4)
    for step in (2, 4):
        (tmp_path / str(step) / "meta" / "data.json").write_text("")
    with pytest.raises(CheckpointError, match="step 4: the file meta/data.json has 0 bytes.*step 2: "):
        restore(tmp_path)
    assert files.list_steps(tmp_path) == [2, 4]


def test_half_written_steps_are_ignored(tmp_path: Path) -> None:
    run(tmp_path, last=4)
    (tmp_path / "6").mkdir()
    (tmp_path / "8.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert restore(tmp_path).step == 4


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """A real process, killed during a save: the step before is used, and the killed step can be saved again."""
    script = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        import jax, jax.numpy as jnp
        from sttts_jax.ckpt.manager import CheckpointConfig, Manager
        from sttts_jax.ckpt.meta import build_meta
        class Fatal:
            async def save(self, directory):
                return self.kill(directory)
            async def kill(self, directory):
                await directory.await_creation()
                os.kill(os.getpid(), signal.SIGKILL)
            async def load(self, directory):
                raise NotImplementedError
        m = Manager(sys.argv[1], CheckpointConfig())
        def meta(step):
            layout = {"shard_count": 1, "row_shards": 1, "processes": 1}
            return build_meta(step=step, config={}, data_layout=layout, counters={})
        m.save(2, {"w": jnp.ones(4)}, {"m": jnp.ones(4)}, None, meta(2))
        m.wait()
        m.save(4, {"w": jnp.ones(4)}, {"m": jnp.ones(4)}, Fatal(), meta(4))
        m.wait()
    """
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), root], check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    assert any("tmp" in path.name for path in tmp_path.iterdir())
    manager = Manager(tmp_path, CheckpointConfig())
    tree = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}, {"m": jax.ShapeDtypeStruct((4,), jnp.float32)}
    assert manager.restore_latest(*tree, None, config={}).step == 2
    assert manager.save(4, {"w": jnp.ones(4)}, {"m": jnp.ones(4)}, None, meta(4))
    manager.close()
    assert files.list_steps(tmp_path) == [2, 4]
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


class _FullDisk:
    """A checkpointable whose background write fails."""

    async def save(self, directory: Any) -> Any:
        return self._write(directory)

    async def _write(self, directory: Any) -> None:
        await directory.await_creation()
        raise OSError(28, "No space left on device")

    async def load(self, directory: Any) -> Any:
        raise NotImplementedError


def test_failed_save_surfaces_at_a_later_check(tmp_path: Path) -> None:
    manager = Manager(tmp_path, CheckpointConfig())
    manager.save(2, params(), TX.init(params()), batches(), meta(2))
    manager.save(4, params(), TX.init(params()), _FullDisk(), meta(4))
    with pytest.raises(CheckpointError, match=r"saving step 4 .*No space left.*whole steps are \[2\]"):
        for _ in range(2000):
            manager.raise_if_failed()
            jax.block_until_ready(jnp.ones(1000).sum())
        manager.wait()
    manager.close()
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
    assert restore(tmp_path).step == 2


def test_another_config_refuses_with_the_keys(tmp_path: Path) -> None:
    run(tmp_path, last=2)
    other = json.loads(json.dumps(CONFIG)) | {"steps": 200, "new": 1}
    other["model"]["width"] = 8
    with pytest.raises(ConfigMismatch, match="3 keys differ") as error:
        restore(tmp_path, config=other)
    rows = [line.split() for line in str(error.value).splitlines()[1:]]
    assert rows == [["key", "saved", "now"], ["model.width", "4", "8"], ["new", "-", "1"], ["steps", "100", "200"]]


def test_cadence_and_mesh_may_change(tmp_path: Path) -> None:
    run(tmp_path, last=2)
    assert restore(tmp_path, config=CONFIG | {"log": {"every": 50}, "mesh": {"data": 4}}).step == 2


def test_data_may_move_and_be_loaded_in_another_way() -> None:
    """What tells moved data from other data is its saved position."""
    sources = [["jsonl:a.jsonl", 1.0, "train"], ["shapes", 2.0, "train", "here"]]
    saved = {"config": json.dumps({"data": {"sources": sources, "bad_share": 0.1, "threads": 2, "rows": 8}})}
    moved = [["jsonl:/b/c.jsonl", 1.0, "train"], ["shapes", 2.0, "train", "/there"]]
    check_config(saved, {"data": {"sources": moved, "bad_share": 0.5, "threads": 4, "rows": 8}})
    for name, value in (("rows", 9), ("sources", [["jsonl:a.jsonl", 1.0, "train[:90%]"], sources[1]])):
        with pytest.raises(ConfigMismatch, match=rf"data\.{name}"):
            check_config(saved, {"data": {"sources": moved, "bad_share": 0.1, "threads": 2, "rows": 8, name: value}})


def test_another_model_refuses_and_moves_nothing(tmp_path: Path) -> None:
    run(tmp_path, last=2)
    manager = Manager(tmp_path, CheckpointConfig())
    other = abstract(params()) | {"w": jax.ShapeDtypeStruct((8, 5), jnp.float32)}
    with pytest.raises(TreeMismatch, match=r"w +float32\[8, 5\] +float32\[8, 4\]"):
        manager.restore_latest(other, abstract(TX.init(params())), batches(), config=CONFIG)
    assert files.list_steps(tmp_path) == [2]


def test_another_format_refuses(tmp_path: Path) -> None:
    manager = Manager(tmp_path, CheckpointConfig())
    manager.save(2, params(), TX.init(params()), None, meta(2) | {"format_version": 99})
    manager.close()
    with pytest.raises(FormatMismatch, match="checkpoint format 99, but this program reads format 1"):
        restore(tmp_path)
    with pytest.raises(FormatMismatch):
        read_meta(tmp_path)


def test_meta_must_be_plain_json() -> None:
    with pytest.raises(ValueError, match="plain JSON"):
        build_meta(step=1, config={}, data_layout={}, counters={"loss": np.float32(1)})
    with pytest.raises(ValueError, match="plain JSON"):
        build_meta(step=1, config={}, data_layout={}, counters={"loss": float("nan")})


def test_layout_of_a_mesh_is_what_meta_wants() -> None:
    layout = DataLayout(make_mesh({"data": 8})).describe()
    assert set(layout) == set(LAYOUT)


@pytest.mark.parametrize("config", [{"every": 0}, {"keep": 0}])
def test_bad_numbers(tmp_path: Path, config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Manager(tmp_path, CheckpointConfig(**config))


def test_steps_of_a_bucket(gcs: FakeGcs) -> None:
    """Saved, restored, gone back a step; what a killed process left there is no step, and is removed."""
    place = as_path("gs://steps/run/checkpoints")
    state, _ = run(place, last=4, keep=3)
    assert files.list_steps(place) == [2, 4] and not files.problem_of(place, 4)
    assert abs(files.written_at(place / "4") - time.time()) < 600
    del gcs.objects["steps/run/checkpoints/4/commit_success.txt"]
    assert files.list_steps(place) == [2, 4]  # copied there by a program that renames folders; its record is there
    del gcs.objects["steps/run/checkpoints/sizes/4.json"]
    assert files.list_steps(place) == [2]
    gcs.put("steps/run/checkpoints/5/params/d/x", b"cut", {})  # as a process of another run would save
    manager = Manager(place, CheckpointConfig(every=2))
    manager.save(6, *state, batches(), meta(6))
    manager.close()
    assert files.list_steps(place) == [2, 6] and not list_objects(place / "5") and not list_objects(place / "4")
    chunks = "steps/run/checkpoints/6/params/d/"
    stored = next(stored for name, stored in gcs.objects.items() if name.startswith(chunks))
    stored.data = bytes([255 - byte for byte in stored.data])
    found = restore(place)
    assert found.step == 2 and (found.params["w"] != params()["w"]).any()
    assert [path.name for path in (place / "broken").iterdir()] == ["6.1"] and files.list_steps(place) == [2]


def test_a_full_disk_ends_the_run_or_not_and_leaves_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files end at 100 bytes for the save of step 4; the one of step 6 finds room again."""
    state = params(), TX.init(params())

    def save(manager: Manager, step: int) -> None:
        manager.save(step, *state, batches(), meta(step))
        manager.wait()

    with pytest.raises(ValueError, match="is unknown; use 'stop' or 'go_on'"):
        CheckpointConfig(on_failure="hope").check()
    for on_failure in ("stop", "go_on"):
        place = tmp_path / on_failure
        manager = Manager(place, CheckpointConfig(every=2, on_failure=on_failure))
        save(manager, 2)
        with full_disk(100), contextlib.nullcontext() if on_failure == "go_on" else pytest.raises(CheckpointError):
            save(manager, 4)
        assert files.list_steps(place) == [2]
        if on_failure == "stop":
            manager.close()
            continue
        assert "saving step 4" in caplog.text and "training goes on" in caplog.text
        with pytest.raises(CheckpointError, match="saving step 4"):  # a run that ended here would have lost it
            manager.close()
        manager = Manager(place, CheckpointConfig(every=2, on_failure=on_failure))
        with full_disk(100):
            save(manager, 4)
        save(manager, 6)
        manager.close()
        assert files.list_steps(place) == [2, 6] and not files.unfinished(place)
