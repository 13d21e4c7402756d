"""Kept results are known by what was asked, of what, at which settings, and by no name."""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.evals.fingerprint import fingerprint
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.results import Key, Result, ResultsFile, Tally
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.open import read_checkpoint

LINE: dict[str, Any] = {
    "id": "a",
    "video": "a.mp4",
    "messages": [
        {"question": "Which?", "answer": "red", "style": "video_multiple_choice", "options": ["red", "blue"]},
        {"question": "Where?", "answer": "left", "family": "place"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, grey in (("a", 40), ("b", 90)):
        (tmp_path / f"{name}.mp4").write_bytes(encode_mp4(np.full((8, 48, 64, 3), grey, np.uint8), 4))
    _write(tmp_path)
    return tmp_path


def _write(folder: Path, **changes: Any) -> None:
    (folder / "own.jsonl").write_text(json.dumps({**LINE, **changes}) + "\n")


def _of(checkpoint: Checkpoint, folder: Path, rows: int = 8, steps: tuple[int, ...] = (), **changes: Any) -> str:
    task = find_task(f"jsonl:{folder / 'own.jsonl'}")
    source = task_source(task, checkpoint.data)
    questions = Questions(task, source, checkpoint.tokenizer, checkpoint.data, changes.pop("limit", None))
    seed = changes.pop("seed", 0)
    return fingerprint(Harness(checkpoint, rows, seed, steps), questions, checkpoint.setting(**changes))


def _with_message(number: int, **changes: Any) -> dict[str, Any]:
    messages = [{**m, **changes} if i == number else m for i, m in enumerate(LINE["messages"])]
    return {"messages": messages}


@pytest.mark.parametrize(
    "changes",
    [
        _with_message(0, question="Which one?"),
        _with_message(0, answer="blue"),
        _with_message(0, options=["red", "green"]),
        _with_message(0, options=["blue", "red"]),
        _with_message(0, style="video_short_answer"),
        _with_message(1, family="other"),
        {"messages": LINE["messages"][:1]},
        {"messages": LINE["messages"][::-1]},
        {"id": "b"},
        {"video": "b.mp4"},
        {"video": "absent.mp4"},
        {"start": 0.5},
        {"end": 1.0},
        {"subtitles": [[0, 1, "x"]]},
        {"images": ["a.mp4"]},
    ],
    ids=json.dumps,
)
def test_edited_questions_are_others(checkpoints: dict[str, Checkpoint], folder: Path, changes: dict[str, Any]) -> None:
    before = _of(checkpoints["scorer"], folder)
    assert _of(checkpoints["scorer"], folder) == before
    _write(folder, **changes)
    assert _of(checkpoints["scorer"], folder) != before


def test_files_are_known_by_what_they_hold(checkpoints: dict[str, Checkpoint], folder: Path) -> None:
    before = _of(checkpoints["scorer"], folder)
    moved = Path(shutil.move(folder, folder.with_name("elsewhere")))
    (moved / "a.mp4").rename(moved / "c.mp4")
    _write(moved, video="c.mp4")
    assert _of(checkpoints["scorer"], moved) == before
    shutil.copy(moved / "b.mp4", moved / "c.mp4")
    assert _of(checkpoints["scorer"], moved) != before


@pytest.mark.parametrize(
    "changes",
    [
        *({"fraction": "0.3"}, {"max_frames": 3}, {"max_fps": 1.0}, {"max_crops": 1}, {"seed": 1}, {"limit": 1}),
        {"sampling": "transformers"},
        {"change": lambda c: c.with_method("easy")},
        {"change": lambda c: dataclasses.replace(c, dtype=jnp.bfloat16)},
        {"change": lambda c: dataclasses.replace(c, attention="xla")},
        {"change": lambda c: dataclasses.replace(c, step=3)},
        {"change": lambda c: dataclasses.replace(c, content=lambda: "other weights")},
        {"change": lambda c: dataclasses.replace(c, data=dataclasses.replace(c.data, sampling="transformers"))},
    ],
)
def test_every_setting_counts(checkpoints: dict[str, Checkpoint], folder: Path, changes: dict[str, Any]) -> None:
    change: Callable[[Checkpoint], Checkpoint] = changes.get("change", lambda checkpoint: checkpoint)
    others = {name: value for name, value in changes.items() if name != "change"}
    checkpoint = checkpoints["scorer"]
    assert _of(change(checkpoint), folder, **others) != _of(checkpoint, folder)


def test_batches_count_where_they_are_drawn_for(checkpoints: dict[str, Checkpoint], folder: Path) -> None:
    for method, differ in (("random", True), ("scorer", False)):
        usual = _of(checkpoints[method], folder)
        assert (_of(checkpoints[method], folder, rows=16) != usual) is differ
        assert (_of(checkpoints[method], folder, steps=(2,)) != usual) is differ


def test_weights_are_known_by_what_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    digests = {name: read_checkpoint(path).digest for name, path in runs.items()}
    copy = shutil.copytree(runs["scorer"], tmp_path / "copy")
    assert read_checkpoint(copy).digest == digests["scorer"] != digests["none"]
    tokenizer = copy / "tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ValueError, match=r"tokenizer.json is not as it was when step 2 was saved.*copy it again"):
        read_checkpoint(copy)
    tokenizer.unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json is not as it was when step 2 was saved"):
        read_checkpoint(copy)


def _result(task: str) -> Result:
    key = Key(task, task, 1, 2, "scorer", "0.5", 4, 2.0, 0, None, 0)
    return Result(key, Tally(1, 1, 0), {}, 0.5, 4.0, 0.1, 0.0, 0, [], 8, [], None)


@pytest.mark.parametrize(
    "names",
    [("jsonl:a/b", "jsonl:a_b"), ("jsonl:ä", "jsonl:ö"), ("jsonl:" + "é" * 400 + "1", "jsonl:" + "é" * 400 + "2")],
)
def test_tasks_of_any_name_keep_their_own_predictions(names: tuple[str, str], tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "run", {"seed": 1})
    for number, name in enumerate(names):
        file.put(f"{number}" * 64, _result(name), [{"number": number}])
    for number, name in enumerate(names):
        found = file.find(f"{number}" * 64)
        assert found is not None and found.key.task == name
        assert file.predictions(found) == [{"number": number}]
    assert file.find("2" * 64) is None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ResultsFile(tmp_path, "run", {"seed": 1})
    file.put("a", _result("one"), [{"said": 1}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for room in (0, 1):  # for the predictions, or for results.json
        left, fsync = [room], os.fsync

        def full(handle: int, left: list[int] = left, fsync: Callable[[int], None] = fsync) -> None:
            if not left[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
            fsync(handle)

        with monkeypatch.context() as patch, pytest.raises(OSError, match=f"No space left on device: '{tmp_path}"):
            patch.setattr(os, "fsync", full)
            file.put("b", _result("two"), [{"said": 2}])
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_measuring_again_replaces_that_alone(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path, "run", {"seed": 1})
    first.put("a", _result("one"), [{"said": 1}])
    first.put("b", _result("two"), [{"said": 2}])
    again = ResultsFile(tmp_path, "run", {"seed": 1}, overwrite=True)
    assert again.find("a") is None
    again.put("a", _result("one"), [{"said": 3}])
    after = ResultsFile(tmp_path, "run", {"seed": 1})
    told = [after.predictions(result) for result in map(after.find, "ab") if result is not None]
    assert told == [[{"said": 3}], [{"said": 2}]]
