"""Two real processes of 4 CPU devices each: rows from the mesh, what they tell each other, checkpoints, preemption."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess
WORKER = Path(__file__).with_name("worker.py")


def _start(case: str, directory: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # One cache for processes that start together makes them miss Gloo's deadline of 30 s.
    own = {"XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), case, str(process), "2", str(port), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for process in range(2)
    ]


def _finish(workers: list[subprocess.Popen[str]], timeout_s: float = 120) -> list[str]:
    end = time.monotonic() + timeout_s
    try:
        texts = [worker.communicate(timeout=max(end - time.monotonic(), 1))[0] for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
    for worker, text in zip(workers, texts, strict=True):
        assert worker.returncode == 0, text[-4000:]
    return texts


@pytest.mark.parametrize("case", ["rows", "words", "checkpoint"])
def test_two_processes(case: str, tmp_path: Path) -> None:
    texts = _finish(_start(case, tmp_path / "checkpoints"))
    for process, text in enumerate(texts):
        assert f"process {process}: {case} ok" in text
        assert f"process {process} of 2, 4 local devices" in text


def test_sigterm_to_one_stops_both_at_the_same_saved_step(tmp_path: Path) -> None:
    workers = _start("preemption", tmp_path / "checkpoints")
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < end and workers[0].poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    if workers[0].poll() is None:
        workers[0].send_signal(signal.SIGTERM)
    stops = [line for text in _finish(workers) for line in text.splitlines() if line.startswith("stopped at")]
    assert len(stops) == 2 and stops[0] == stops[1]
