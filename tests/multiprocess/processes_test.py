"""Two real processes of 4 CPU devices each: whose rows, what they tell each other, where they stop, checkpoints."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess
WORKER = Path(__file__).with_name("worker.py")


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # One cache for processes that start together makes them miss Gloo's deadline of 30 s.
    own = {"XLA_FLAGS", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(process), "2", str(port), str(tmp_path / "checkpoints")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={key: value for key, value in os.environ.items() if key not in own},
        )
        for process in range(2)
    ]
    end = time.monotonic() + 120
    try:
        texts = [worker.communicate(timeout=max(end - time.monotonic(), 1))[0] for worker in workers]
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
    for process, (worker, text) in enumerate(zip(workers, texts, strict=True)):
        assert worker.returncode == 0 and f"process {process}: ok" in text, text[-4000:]
        assert f"process {process} of 2, 4 local devices" in text
