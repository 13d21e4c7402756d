"""The step that readers choose: damaged bytes are noticed, named and passed over, whoever reads."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from sttts_jax.ckpt import files, manager, verify
from sttts_jax.ckpt.data_state import DataState
from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.restore import DATA, OPT, PARAMS, load_params, load_step
from sttts_jax.ckpt.verify import problem_everywhere
from sttts_jax.ckpt.whole import DamagedStep, whole_step
from sttts_jax.trees import named_leaves
from tests.ckpt.damage import flip_a_bit, zero_bytes

LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
ALL = (PARAMS, OPT, DATA)
FLIPS = 300


def _tree(step: int) -> dict[str, Any]:
    """A large leaf, one that OCDBT keeps in its node, one that compresses, one number."""
    noise = np.random.default_rng(step).standard_normal((32, 64), np.float32)
    return {"w": jnp.asarray(noise), "deep": {"b": jnp.arange(5.0) + step, "z": jnp.zeros(4000)}, "n": jnp.int32(step)}


class _Position:
    """A data iterator's state."""

    def __init__(self, number: int = 0):
        self.number = number

    def get_state(self) -> dict[str, Any]:
        return {"position": self.number}

    def set_state(self, state: dict[str, Any]) -> None:
        self.number = state["position"]


def _save(directory: Path, *steps: int) -> Path:
    saver = Manager(directory, CheckpointConfig(every=1))
    for step in steps:
        meta = build_meta(step=step, config={"steps": 9}, data_layout=LAYOUT, counters={"skipped": 0})
        saver.save(step, _tree(step), {"m": _tree(step + 100)}, DataState(_Position(step)), meta)
    saver.close()
    return directory


@pytest.fixture(scope="module", name="saved")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 2 and 4."""
    return _save(tmp_path_factory.mktemp("steps"), 2, 4)


@pytest.fixture(name="steps")
def _copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "steps"))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _resume(directory: Path) -> Any:
    position = _Position()
    with contextlib.closing(Manager(directory, CheckpointConfig(every=1))) as resumed:
        found = resumed.restore_latest(
            _abstract(_tree(0)), _abstract({"m": _tree(0)}), DataState(position), config={"steps": 9}
        )
    assert found is not None and position.number == found.step == found.meta["step"]
    _assert_step(found.params, found.opt, found.step)
    return found


def _assert_step(params: Any, opt: Any, step: int) -> None:
    want = named_leaves({"params": _tree(step), "opt": {"m": _tree(step + 100)}})
    got = named_leaves({"params": params, "opt": opt})
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        assert np.asarray(got[name]).tobytes() == np.asarray(leaf).tobytes(), name


def _damaged(file: Path, rng: np.random.Generator) -> None:
    """One bit is flipped, or up to 16 bytes become zero."""
    data = bytearray(file.read_bytes())
    place = int(rng.integers(len(data)))
    if rng.integers(2):
        data[place] ^= 1 << int(rng.integers(8))
    else:
        data[place : place + 16] = bytes(len(data[place : place + 16]))
    file.write_bytes(data)


def test_any_damaged_byte_is_noticed_or_read_by_nobody(steps: Path) -> None:
    """A fuzzer with a fixed seed over every file of a step: nothing else than what was saved is ever loaded."""
    rng, step = np.random.default_rng(0), files.step_directory(steps, 4)
    files_of_step = [file for file in sorted((steps / "4").rglob("*")) if file.is_file() and file.stat().st_size]
    before = {file: file.read_bytes() for file in files_of_step}
    unnoticed = 0
    for number in range(FLIPS):
        file = files_of_step[number % len(files_of_step)]
        _damaged(file, rng)
        if before[file] != file.read_bytes() and not problem_everywhere(step, ALL):
            unnoticed += 1
            position = _Position()
            loaded = load_step(step, _abstract(_tree(0)), _abstract({"m": _tree(0)}), DataState(position))
            _assert_step(*loaded, 4)
            assert position.number == 4
        file.write_bytes(before[file])
    assert unnoticed < FLIPS // 10  # Orbax keeps nodes that nothing refers to
    assert not problem_everywhere(step, ALL)


@pytest.mark.parametrize("part", [PARAMS, OPT])
@pytest.mark.parametrize("change", [flip_a_bit, zero_bytes])
def test_a_resume_falls_back_and_says_both_steps(
    part: str, change: Any, steps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = change(steps / "4", part)
    assert _resume(steps).step == 2
    name = file.relative_to(steps / "4")
    assert f"checkpoint step 4 in {steps} is damaged: the file {name} does not match its checksum" in caplog.text
    assert "step 2 is used in its place" in caplog.text and "no checksums" not in caplog.text
    assert files.list_steps(steps) == [2]


def test_readers_of_parameters_take_the_step_before(steps: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = flip_a_bit(steps / "4")
    assert whole_step(steps) == steps / "2"
    _assert_step(load_params(whole_step(steps)), {"m": _tree(102)}, 2)
    assert f"step 4 in {steps} is damaged: the file {file.relative_to(steps / '4')} does not" in caplog.text
    assert "step 2 is used in its place" in caplog.text
    assert files.list_steps(steps) == [2, 4]  # they move nothing


def test_damaged_moments_are_no_matter_to_readers_of_parameters(steps: Path) -> None:
    flip_a_bit(steps / "4", OPT)
    assert whole_step(steps) == steps / "4"


def test_the_one_step_that_was_asked_for_is_refused(steps: Path) -> None:
    flip_a_bit(steps / "4")
    with pytest.raises(DamagedStep, match=f"{steps}/4 is damaged: the file params/.* does not match its checksum"):
        whole_step(steps / "4")
    flip_a_bit(steps / "2")
    with pytest.raises(DamagedStep, match="no step in .* can be read .step 4: the file .*; step 2: the file"):
        whole_step(steps)


@pytest.mark.parametrize("file", ["meta/data.json", "data/process_0-of-1.json", "params/_METADATA"])
def test_a_changed_letter_of_a_small_file_is_noticed(file: str, steps: Path) -> None:
    text = (steps / "4" / file).read_text()
    number = next(place for place, letter in enumerate(text) if letter.isdigit())
    (steps / "4" / file).write_text(text[:number] + str((int(text[number]) + 1) % 10) + text[number + 1 :])
    assert files.problem_of(steps, 4) == f"the file {file} does not match its checksum"
    assert _resume(steps).step == 2


def test_steps_without_checksums_load_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    named = tensorstore_utils._build_zarr3_metadata

    def before(*args: Any, **kwargs: Any) -> Any:
        made = named(*args, **kwargs)
        made["codecs"][0]["configuration"]["codecs"].pop()
        return made

    monkeypatch.setattr(tensorstore_utils, "_build_zarr3_metadata", before)
    _save(tmp_path, 2)
    (tmp_path / "sizes" / "2.json").write_text(json.dumps(files.file_sizes(files.step_directory(tmp_path, 2))))
    assert _resume(tmp_path).step == 2
    assert f"checkpoint step 2 in {tmp_path} has no checksums of its arrays and other files" in caplog.text
    caplog.clear()
    assert whole_step(tmp_path) == tmp_path / "2" and "no checksums" in caplog.text


def test_no_memory_and_no_rights_are_no_damage(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError("out of memory"), PermissionError(13, "Permission denied"), ValueError("UNAVAILABLE: x")):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(verify, "_read_through", _raiser(error))
            whole_step(steps)
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(manager, "load_step", _raiser(error))
            _resume(steps)
    assert _resume(steps).step == 4


def _raiser(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_coarse_chunks_are_read_one_by_one(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "COARSE_BYTES", 1)
    assert whole_step(steps) == steps / "4"
    flip_a_bit(steps / "4")
    assert whole_step(steps) == steps / "2"


def test_hugging_face_files_name_convert(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"sttts-jax convert --from hf:{tmp_path} --to orbax:DIR"):
        whole_step(tmp_path)
