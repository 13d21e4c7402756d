"""Processes of a command that are started together, as on hosts of their own with some CPU devices each."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNT = "--xla_force_host_platform_device_count"


class Group:
    """`sttts-jax` with the same words in `processes` processes of `devices` devices; `extra`: words of single ones.

    What they say goes to files in `folder`: a pipe that nobody reads would stop them.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        processes: int,
        devices: int,
        extra: dict[int, Sequence[str]] | None = None,
        only: Sequence[int] | None = None,
        prefix: Sequence[Sequence[str]] = (),
        host: str = "127.0.0.1",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # One cache for processes that start together makes them miss Gloo's deadline of 30 s.
        own = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
        own |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        flags = [flag for flag in own.get("XLA_FLAGS", "").split() if not flag.startswith(COUNT)]
        own["XLA_FLAGS"] = " ".join([*flags, f"{COUNT}={devices}"])
        self.files, self.running = list[Path](), list[subprocess.Popen[str]]()
        for number in range(processes) if only is None else only:
            by_hand = {"JAX_COORDINATOR_ADDRESS": f"{host}:{port}", "JAX_PROCESS_ID": str(number)}
            file = folder / f"process_{number}.txt"
            command = [*(prefix[number] if prefix else ()), sys.executable, "-m", "sttts_jax.cli", *words]
            with file.open("w") as out:
                process = subprocess.Popen(
                    [*command, *(extra or {}).get(number, ())],
                    env={**own, **(by_hand | {"JAX_NUM_PROCESSES": str(processes)} if processes > 1 else {})},
                    cwd=ROOT,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            self.files.append(file)
            self.running.append(process)

    def text(self, number: int) -> str:
        """What a process said so far."""
        return self.files[number].read_text()

    def wait_for(self, number: int, text: str, timeout_s: float = 90) -> None:
        """Until a process says it, or ends."""
        until = time.monotonic() + timeout_s
        while text not in self.text(number) and self.running[number].poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert text in self.text(number), self.text(number)[-3000:]

    def worker(self, number: int) -> int:
        """The process below a supervisor."""
        children = Path(f"/proc/{self.running[number].pid}/task/{self.running[number].pid}/children")
        return int(children.read_text().split()[0])

    def finish(self, timeout_s: float = 120) -> list[int]:
        """Their exit codes; none is left."""
        until = time.monotonic() + timeout_s
        try:
            return [process.wait(max(until - time.monotonic(), 0.1)) for process in self.running]
        finally:
            for process in self.running:
                if process.poll() is None:
                    process.kill()
