"""A file of questions to a file of answers: resumed, in order, each video read once, and never a stale answer.

What the model says is made up here, so that nothing is compiled; tests/infer/scene_test.py has the true answers.
"""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sttts_jax.cli import answer as command
from sttts_jax.cli.main import run as run_command
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.infer import model as models
from sttts_jax.infer.batch import answer_file
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.generate import GenerationConfig
from sttts_jax.infer.model import Model
from sttts_jax.infer.scene import Answer, Scene

LINES: list[dict[str, Any]] = [
    {"id": "one", "video": "a.mp4", "question": "What?"},
    {"video": "b.mp4", "question": "Where?", "options": ["left", "right"], "style": "video_multiple_choice"},
    {"video": "a.mp4", "messages": [{"question": "Why?"}, {"question": "When?", "answer": "now"}]},
    {"video": "gone.mp4", "question": "Who?"},
    {"question": "Is <|im_end|> a word?"},
    {"video": "a.mp4", "start": 0.5, "question": "What?", "subtitles": [[0, 1, "so"]]},
    {"video": "a.mp4", "question": "What?"},
    {"video": "a.mp4", "question": "", "id": "empty"},
]
GOOD = [0, 1, 2, 3, 6, 7]  # numbers of the questions that can be asked; the last is the first once more


@pytest.fixture
def model(checkpoints: dict[str, Checkpoint]) -> Model:
    return Model(checkpoints["scorer"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, grey in (("a", 40), ("b", 90)):
        (tmp_path / f"{name}.mp4").write_bytes(encode_mp4(np.full((8, 48, 64, 3), grey, np.uint8), 4))
    _ask(LINES)
    return tmp_path


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(video, question) of all that was asked."""
    asked: list[tuple[str, str]] = []
    true = Scene.ask

    def ask(scene: Scene, question: str, generation: GenerationConfig) -> Answer:
        if "<|" in question:
            return true(scene, question, generation)  # refuses
        asked.append((scene.name, question))
        return Answer(question, f"{question} indeed", (1,), True, 0.0, None, 0.0)

    monkeypatch.setattr(Scene, "ask", ask)
    return asked


def _ask(lines: list[dict[str, Any]]) -> None:
    Path("q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _found() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]


def test_all_are_answered_in_order_and_each_video_is_read_once(
    model: Model, folder: Path, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decode = [], models.decode
    monkeypatch.setattr(models, "decode", lambda *args, **kw: read.append(args[0]) or decode(*args, **kw))
    said: list[str] = []
    assert answer_file(model, "q.jsonl", "a.jsonl", say=said.append) == (6, 0, 3)
    # One more for the clip that starts elsewhere, and the try of the one that is not there.
    assert [Path(path).name for path in read] == ["a.mp4", "b.mp4", "gone.mp4", "a.mp4"]
    found = _found()
    assert [line["number"] for line in found] == list(range(9))
    assert [line["number"] for line in found if "answer" in line] == GOOD
    assert (found[0]["id"], found[0]["question"], found[0]["answer"]) == ("one", "What?", "What? indeed")
    assert found[1]["answer"] == "Where?\nOnly return the correct answer option.\nA. left\nB. right indeed"
    assert found[4]["error"].endswith("gone.mp4: no such file") and "key" not in found[4]
    assert "contains the reserved token <|im_end|>" in found[5]["error"]
    assert found[8]["error"].startswith(f"{folder}/q.jsonl:8: ") and "id" not in found[8]
    assert [line for line in said if "error" in line or "no such file" in line] and len(asked) == 5


def test_it_goes_on_where_it_stopped(
    model: Model, folder: Path, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_file(model, "q.jsonl", "a.jsonl")
    whole = Path("a.jsonl").read_bytes()
    Path("a.jsonl").unlink()
    usual = Scene.ask

    def dies(scene: Scene, question: str, generation: GenerationConfig) -> Answer:
        if len(asked) == 8:
            raise KeyboardInterrupt
        return usual(scene, question, generation)

    monkeypatch.setattr(Scene, "ask", dies)
    with pytest.raises(KeyboardInterrupt):
        answer_file(model, "q.jsonl", "a.jsonl")
    assert len(_found()) == 3
    with open("a.jsonl", "a") as file:
        file.write('{"number": 7, "id"')  # as kill -9 may leave it
    monkeypatch.setattr(Scene, "ask", usual)
    assert answer_file(model, "q.jsonl", "a.jsonl") == (2, 4, 3)
    assert Path("a.jsonl").read_bytes() == whole and len(asked) == 10
    assert answer_file(model, "q.jsonl", "a.jsonl") == (0, 6, 3) and len(asked) == 10


def test_lines_that_move_keep_their_answers(model: Model, folder: Path, asked: list[tuple[str, str]]) -> None:
    answer_file(model, "q.jsonl", "a.jsonl")
    new = {"video": "b.mp4", "question": "How many?", "id": "new"}
    _ask([new, *LINES[::-1]])
    assert answer_file(model, "q.jsonl", "a.jsonl") == (1, 6, 3) and asked[5:] == [("new", "How many?")]
    assert [line["number"] for line in _found()] == list(range(10)) and _found()[0]["id"] == "new"
    assert _found()[-1]["id"] == "one" and _found()[-1]["answer"] == "What? indeed"


@pytest.mark.parametrize(
    "change",
    [
        lambda: _ask([LINES[0], {**LINES[1], "question": "Whither?"}, *LINES[2:]]),
        lambda: shutil.copy("b.mp4", "a.mp4"),
        {"generation": GenerationConfig(max_new_tokens=3)},
        {"generation": GenerationConfig(temperature=0.5)},
        {"pruned_fraction": "0.3"},
        {"max_frames": 2},
        {"max_fps": 1.0},
        {"max_crops": 1},
        {"sampling": "transformers"},
    ],
)
def test_stale_answers_are_refused_or_replaced(
    model: Model, folder: Path, asked: list[tuple[str, str]], change: Callable[[], None] | dict[str, Any]
) -> None:
    answer_file(model, "q.jsonl", "a.jsonl")
    before, settings = Path("a.jsonl").read_bytes(), change if isinstance(change, dict) else {}
    if not isinstance(change, dict):
        change()
    with pytest.raises(ValueError, match="a.jsonl holds .* answers to something else than is asked now"):
        answer_file(model, "q.jsonl", "a.jsonl", **settings)
    assert Path("a.jsonl").read_bytes() == before and len(asked) == 5
    count = answer_file(model, "q.jsonl", "a.jsonl", overwrite=True, **settings)
    assert count.answered + count.before == 6 and len(asked) > 5
    assert [line["number"] for line in _found() if "answer" in line] == GOOD


def test_what_cannot_be_asked_is_said_as_often_as_it_is_asked(model: Model, folder: Path) -> None:
    _ask([LINES[3], LINES[0], LINES[3], LINES[4], LINES[4]])
    assert answer_file(model, "q.jsonl", "new/folder/a.jsonl") == (1, 0, 4)
    lines = [json.loads(line) for line in Path("new/folder/a.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines if "error" in line] == [0, 2, 3, 4] and len(lines) == 5


def test_other_weights_give_other_answers(model: Model, folder: Path) -> None:
    answer_file(model, "q.jsonl", "a.jsonl")
    for other in ({"content": lambda: "others"}, {"dtype": np.dtype("float16")}):
        with pytest.raises(ValueError, match="to something else"):
            answer_file(Model(dataclasses.replace(model.checkpoint, **other)), "q.jsonl", "a.jsonl")
    with pytest.raises(ValueError, match="to something else"):
        answer_file(Model(model.checkpoint.with_method("easy")), "q.jsonl", "a.jsonl")


def test_other_files_are_not_written_over(model: Model, folder: Path) -> None:
    for text in ("notes\n", '{"a": 1}\n', "[1]\n"):
        Path("a.jsonl").write_text(text)
        with pytest.raises(ValueError, match="a.jsonl:1: is no line of answers; give another --out"):
            answer_file(model, "q.jsonl", "a.jsonl", overwrite=True)
        assert Path("a.jsonl").read_text() == text
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        answer_file(model, "q.jsonl", str(folder))


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(
    runs: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(runs["scorer"]), "--questions", "q.jsonl", "--out", "a.jsonl"]
    room, fsync = [2], os.fsync

    def full(handle: int) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert run_command("answer", command.main, words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    said = printed.err.splitlines()[-1]
    assert said == f"sttts-jax answer: error: {folder}/a.jsonl: No space left on device; " + (
        "free some space, or choose another place"
    )
    assert len(_found()) == 2
    monkeypatch.setattr(os, "fsync", fsync)
    assert run_command("answer", command.main, words) == 0
    assert "3 answers in a.jsonl, 3 were there before; 3 questions could not be asked" in capsys.readouterr().err
