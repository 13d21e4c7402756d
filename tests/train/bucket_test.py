"""A run whose workdir and data lie in a bucket: everything is there, nothing beside it, and readers find it."""

import json
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.ckpt.files import list_steps, problem_of
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.paths import list_objects
from sttts_jax.train.main import main as train
from sttts_jax.train.metric_lines import JsonLines, read_lines
from sttts_jax.train.tensorboard import TensorBoard
from tests.fake_gcs import FakeGcs
from tests.tiny import tiny_config
from tests.tiny_runs import SETTINGS


def test_a_run_in_a_bucket(gcs: FakeGcs, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (file for file in clips.rglob("*") if file.is_file()):
        gcs.put(f"runs/data/{file.relative_to(clips)}", file.read_bytes(), {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workdir = Workdir("gs://runs/mine")
    source = ("shapes_video_qa", 1.0, "train", "gs://runs/data")
    train(tiny_config(clips, data__sources=(source,), log__tensorboard=True, **SETTINGS), workdir.root)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # where ArrayRecord is read
    assert sorted(path.name for path in workdir.root.iterdir()) == [
        *("checkpoints", "logs", "metrics.jsonl", "state.txt", "tensorboard", "tokenizer")
    ]
    assert Tokenizer.load(workdir.tokenizer).base_size
    assert [line["step"] for line in read_lines(workdir.metrics) if "loss" in line] == [1, 2]
    assert whole_step(workdir.root) == workdir.checkpoints / "2"
    assert list_steps(workdir.checkpoints) == [2] and not problem_of(workdir.checkpoints, 2)
    assert all(size for size, _ in list_objects(workdir.tensorboard).values())
    (log,) = workdir.logs.iterdir()
    assert "all parameters are fresh" in log.read_text() and "goodput" in log.read_text()


def _numbers(path: Any) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_metrics_of_a_bucket_are_there_when_they_are_flushed(gcs: FakeGcs) -> None:
    """A killed process loses what it held since the last flush, and the next start drops what is after its step."""
    path = Workdir("gs://metrics/run").metrics
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.write({"step": step})
        assert _numbers(path) == list(range(1, step))
        lines.flush()
        assert _numbers(path) == list(range(1, step + 1))
    lines.write({"step": 4})
    uploads = [line for line in gcs.log if line.startswith("POST /upload") and "/metrics/" in line]
    assert len(uploads) == 4  # the file as it began, and one object a flush
    gcs.put("metrics/run/metrics.jsonl", b"".join(json.dumps({"step": n}).encode() + b"\n" for n in (1, 2)), {})
    assert _numbers(path) == [1, 2, 3]  # a process that died as it put them together
    lines = JsonLines(path, resume_step=2)
    assert _numbers(path) == [1, 2] and list(list_objects(path.parent)) == ["metrics.jsonl"]
    lines.write({"step": 3})
    lines.close()
    assert _numbers(path) == [1, 2, 3] and list(list_objects(path.parent)) == ["metrics.jsonl"]


def test_lines_are_flushed_by_themselves(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sttts_jax.train.metric_lines.FLUSH_S", 0.0)
    path = Workdir("gs://metrics/self").metrics
    JsonLines(path).write({"step": 1})
    assert _numbers(path) == [1]


def test_event_files_of_a_bucket_end(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flush writes a file anew: no file grows with the run."""
    monkeypatch.setattr("sttts_jax.train.tensorboard.ROLL_BYTES", 200)
    board = TensorBoard("gs://board/run")
    for step in range(1, 11):
        board.scalars(step, {"loss": 1.0})
    board.close()
    sizes = [size for size, _ in list_objects("gs://board/run").values()]
    assert len(sizes) > 1 and max(sizes) < 600
