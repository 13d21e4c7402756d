"""metrics.jsonl across restarts, histograms, the console, and metrics that come one step late."""

import errno
import io
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.train.console import ConsoleLog
from sttts_jax.train.metric_lines import JsonLines, read_lines
from sttts_jax.train.metrics import Late, MetricWriter, UnwritableMetrics
from tests.full_disk import full_disk


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


@pytest.mark.parametrize("tail", [b"\0" * 64, b"\xff\xfe\n", b'{"step": 2}garbage\n5\n', b"[" * 10**5], ids=repr)
def test_a_damaged_tail_is_dropped_and_said(tmp_path: Path, tail: bytes) -> None:
    path, out = tmp_path / "metrics.jsonl", io.StringIO()
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + tail)
    assert read_lines(path) == [{"step": 1, "loss": 0.5}]
    metrics = MetricWriter(tmp_path, total_steps=4, resume_step=1, tensorboard=False, out=out)
    metrics.write(2, {"loss": 0.25})
    metrics.close()
    assert read_lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert f"{path}: dropped " in out.getvalue()


def test_text_in_a_line_is_no_end_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "name": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_lines(path) == [{"step": 1, "name": "a\u2028b\u0085c"}]
    JsonLines(path, resume_step=1).close()
    assert len(read_lines(path)) == 1


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(tmp_path: Path) -> None:
    metrics = MetricWriter(tmp_path, total_steps=4, tensorboard=False, out=io.StringIO())
    metrics.write(1, {"loss": 0.5})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with full_disk(len(whole) + 5), pytest.raises(UnwritableMetrics, match="cannot be written .*see to space"):
        metrics.write(2, {"loss": 0.25})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    metrics.write(2, {"loss": 0.25})
    metrics.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_patient_writer_goes_on_over_a_full_disk(tmp_path: Path) -> None:
    out = io.StringIO()
    metrics = MetricWriter(tmp_path, total_steps=4, tensorboard=False, patient=True, out=out)
    metrics.write(1, {"loss": 0.5})
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size):
        metrics.write(2, {"loss": 0.25})
        metrics.write(3, {"loss": 0.2})
    metrics.write(4, {"loss": 0.1})
    metrics.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 4]
    assert out.getvalue().count("cannot be written") == 1 and "while training goes on" in out.getvalue()


def test_a_full_disk_under_tensorboard_is_said_and_never_waited_for(tmp_path: Path) -> None:
    metrics = MetricWriter(tmp_path, total_steps=4, out=io.StringIO())
    with full_disk(2000), pytest.raises(UnwritableMetrics):
        for step in range(1, 1000):
            metrics.histogram(step, "scores", np.ones(64), np.linspace(0, 1, 65))
    assert len(read_lines(tmp_path / "metrics.jsonl")) in (1, 2, 3, 4)


def test_a_workdir_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.raises(UnwritableMetrics, match=f"the metrics in {tmp_path} cannot be written"):
        MetricWriter(tmp_path, total_steps=4, out=io.StringIO())


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


def test_80_columns_hold_the_bar_the_step_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many numbers there are: they have lines of their own."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    console = ConsoleLog(250_000, first_step=123_455, out=out)
    names = ("loss", "loss_task", "loss_aux", "accuracy_tokens", "kept/share", "fill/tokens", "time/data_wait_s")
    console.report(123_456, {name: 0.12345 for name in names})
    console.close()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in re.split(r"[\r\n]+", out.getvalue())]
    assert max(map(len, lines)) <= 80
    bars = [line for line in lines if "123456/250000" in line]
    assert bars and all(line.startswith("train ━") and "ETA" in line and "loss" not in line for line in bars)
    assert all(any(f"{name} 0.1235" in line for line in lines) for name in names)


def test_a_run_goes_on_without_its_terminal() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    console = ConsoleLog(10, out=Gone())
    console.report(1, {"loss": 1.0})
    console.note("hello")
    console.close()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    console = ConsoleLog(10, first_step=2, out=out)
    console.report(5, {"loss": 0.25})
    console.note("hello")
    console.close()
    assert "5/10" in out.getvalue() and "loss 0.25" in out.getvalue() and "\x1b[" in out.getvalue()
