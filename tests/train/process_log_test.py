"""Every process has a log; the terminal is the first one's."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import logging as absl_logging

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.train import process_log
from sttts_jax.train.process_log import process_log as log_of_process
from tests.fake_gcs import FakeGcs


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_has_a_file_and_the_first_one_the_terminal(
    tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: process)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    for number in (1, 2):
        with log_of_process(Workdir(tmp_path)):
            absl_logging.info("start %d", number)
            logging.getLogger("sttts_jax.data").warning("a bad record")
            absl_logging.error("a hang")
    text = (tmp_path / "logs" / f"process_{process}.log").read_text()
    assert [text.count(words) for words in ("start 1", "start 2", "a bad record", "a hang")] == [1, 1, 2, 2]
    shown = capsys.readouterr().err
    assert "start" not in shown and ("a bad record" in shown) == (process == 0) and "a hang" in shown
    absl_logging.info("after")
    assert "after" not in (tmp_path / "logs" / f"process_{process}.log").read_text()


def test_a_log_in_a_bucket_is_objects_that_end(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_log, "ROLL_CHARACTERS", 200)
    monkeypatch.setattr(process_log, "FLUSH_S", 0.02)
    workdir = Workdir("gs://logs/run")
    with log_of_process(workdir):
        for number in range(8):
            absl_logging.info("line %d %s", number, "x" * 40)
            time.sleep(0.05)
    texts = [path.read_text() for path in sorted(workdir.logs.iterdir())]
    assert len(texts) > 1 and "".join(texts).count("line") == 8


def test_a_client_of_the_store_may_log_while_the_log_is_written(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so in a thread of its own, for which the writer waits."""
    real = process_log.write_text

    def logs_too(path: Any, text: str) -> None:
        other = threading.Thread(target=absl_logging.warning, args=("the store is slow",))
        other.start()
        other.join(10)
        assert not other.is_alive()
        real(path, text)

    monkeypatch.setattr(process_log, "write_text", logs_too)
    monkeypatch.setattr(process_log, "FLUSH_S", 0.02)
    workdir = Workdir("gs://logs/client")
    with log_of_process(workdir):
        absl_logging.info("a line")
        time.sleep(0.2)
    assert "a line" in next(iter(workdir.logs.iterdir())).read_text()


def test_no_log_is_no_end(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    with log_of_process(Workdir(tmp_path)):
        absl_logging.info("said")
