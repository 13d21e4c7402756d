"""metrics.jsonl across restarts, histograms, the console, and metrics that come one step late."""

import io
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.train.metrics import ConsoleLog, JsonLines, Late, MetricWriter, read_lines


def test_late_hands_out_the_step_before() -> None:
    late = Late()
    assert late.push(1, {"loss": jnp.float32(10)}) is None
    step, values = late.push(2, {"loss": jnp.float32(20)})
    assert step == 1 and values["loss"] == 10 and isinstance(values["loss"], np.ndarray | np.generic)
    assert late.flush() == (2, {"loss": 20})
    assert late.flush() is None


def test_resume_drops_later_lines_and_a_cut_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in range(1, 6):
        lines.write({"step": step, "loss": step / 2})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    lines = JsonLines(path, resume_step=3)
    assert [record["step"] for record in read_lines(path)] == [1, 2, 3]
    lines.write({"step": 4, "loss": 9.0})
    lines.close()
    assert [record["loss"] for record in read_lines(path)] == [0.5, 1.0, 1.5, 9.0]
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    """A killed process loses no line that was written."""
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.write({"step": 1, "loss": 1.0})
    assert len(read_lines(tmp_path / "m.jsonl")) == 1
    lines.close()


def test_not_a_number_survives_as_valid_json(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.write({"step": 1, "loss": float("nan"), "norm": float("-inf")})
    lines.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["loss"] == "NaN"
    (record,) = read_lines(tmp_path / "m.jsonl")
    assert math.isnan(record["loss"]) and record["norm"] == -math.inf


def test_a_line_needs_a_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a step"):
        JsonLines(tmp_path / "m.jsonl").write({"loss": 1})


def test_all_writers(tmp_path: Path) -> None:
    out = io.StringIO()
    metrics = MetricWriter(tmp_path, total_steps=4, console_keys=("loss", "absent"), out=out)
    metrics.write(1, {"loss": np.float32(0.5), "rate/tokens_per_s": 123456.0})
    metrics.histogram(1, "scores", jnp.array([1, 2]), jnp.array([0.0, 0.5, 1.0]))
    metrics.image(1, "kept", np.zeros((4, 4, 3), np.uint8))
    metrics.note("saved step 1")
    metrics.close()
    assert out.getvalue() == "step 1/4  loss 0.5\nsaved step 1\n"
    scalars, histogram = read_lines(tmp_path / "metrics.jsonl")
    assert scalars == {"step": 1, "loss": 0.5, "rate/tokens_per_s": 123456.0}
    assert histogram == {"step": 1, "histogram": "scores", "counts": [1, 2], "edges": [0.0, 0.5, 1.0]}
    assert next((tmp_path / "tensorboard").iterdir()).stat().st_size > 100


def test_arrays_are_refused_by_name(tmp_path: Path) -> None:
    metrics = MetricWriter(tmp_path, total_steps=1, tensorboard=False, out=io.StringIO())
    with pytest.raises(ValueError, match=r"\['scores'\] are not scalars"):
        metrics.write(1, {"loss": 1.0, "scores": np.zeros(3)})
    metrics.close()


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = io.StringIO()
    metrics = MetricWriter(tmp_path / "run", total_steps=1, out=out)
    metrics.write(1, {"loss": 1.0})
    metrics.histogram(1, "h", [1], [0, 1])
    metrics.image(1, "kept", np.zeros((4, 4, 3), np.uint8))
    metrics.note("nothing")
    metrics.close()
    assert not out.getvalue() and not list(tmp_path.iterdir())


def test_the_console_shows_a_record_of_other_keys_whole(tmp_path: Path) -> None:
    out = io.StringIO()
    metrics = MetricWriter(tmp_path, total_steps=4, tensorboard=False, out=out)
    metrics.write(2, {"eval/x/accuracy": 0.5})
    metrics.close()
    assert out.getvalue() == "step 2/4  eval/x/accuracy 0.5\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    console = ConsoleLog(10, first_step=2, out=out)
    console.report(5, {"loss": 0.25})
    console.note("hello")
    console.close()
    assert "5/10" in out.getvalue() and "loss 0.25" in out.getvalue() and "\x1b[" in out.getvalue()
