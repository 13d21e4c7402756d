"""Watches over one of several processes: it ends when its worker ends, and says in one sentence why.

    python -m sttts_jax.processes.supervisor SETTINGS COMMAND ..

Where JAX loses another process it ends its own from within C++, with pages of text and no way for Python to say
anything; a process that is stopped or that waits inside of a driver hears no deadline. This small parent can do both:
it starts the command, hands on its signals and what it says, and knows its end. It needs no JAX and no port: its worker
and it see each other through two pipes.
"""

import contextlib
import dataclasses
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from sttts_jax.exit_codes import HANG
from sttts_jax.processes.pulse import JOINED, PIPES, SPOKEN

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
# Lines of the C++ libraries: "F1130 17:52:46.123456   12 client.cc:80] ..", and the stacks below them.
_RUNTIME = re.compile(rb"[EFW]\d{4} \d\d:\d\d[:.]|\*\*\* |    @ |\s*#\d+ 0x|Fatal Python error")
_HELD_S = 3.0  # that such lines are kept back: they are dropped where the process ends with them
_REST_S = 0.5  # after the end of the worker, for what it said last
_MOST_SAID = 300


@dataclasses.dataclass(frozen=True)
class Settings:
    """name: of the command. process, processes: which one this is. heartbeat_s: as in the config."""

    name: str
    process: int
    processes: int
    heartbeat_s: float


class Supervisor:
    """Runs one command."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._held: list[tuple[float, bytes]] = []  # lines of the runtime, and when they came
        self._partial = b""
        self._debug = os.environ.get("STTTS_DEBUG") == "1"
        self._told: set[int] = set()  # signals that were handed on
        self._spoken = self._joined = False
        self._last: float | None = None  # sign of life of the worker

    def run(self, command: Sequence[str]) -> int:
        """The exit code: the worker's, or HANG where it was ended for showing no life."""
        life, worker_writes = os.pipe()
        worker_reads, ours = os.pipe()
        errors, worker_errors = os.pipe()
        os.set_blocking(ours, False)
        pipes = {PIPES: f"{worker_reads},{worker_writes}"}
        worker = subprocess.Popen(
            command,
            stderr=worker_errors,
            pass_fds=(worker_reads, worker_writes),
            env={**os.environ, **pipes},
            start_new_session=True,  # Ctrl-C of a terminal comes once, from here
        )
        for end in (worker_writes, worker_reads, worker_errors):
            os.close(end)
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda got, frame: self._hand_on(worker, got, frame))
        return self._watch(worker, life, ours, errors)

    def _hand_on(self, worker: "subprocess.Popen[bytes]", number: int, frame: FrameType | None) -> None:
        del frame
        self._told.add(number)
        worker.send_signal(number)

    def _watch(self, worker: "subprocess.Popen[bytes]", life: int, ours: int, errors: int) -> int:
        selector = selectors.DefaultSelector()
        selector.register(life, selectors.EVENT_READ, self._note_life)
        selector.register(errors, selectors.EVENT_READ, self._relay)
        while worker.poll() is None:
            self._round(selector, 0.5)
            _beat(ours)
            if self._is_still():
                worker.kill()
                worker.wait()
                return self._end(HANG, f"showed no life for {self._settings.heartbeat_s:g} s and was ended")
        until = time.monotonic() + _REST_S
        while time.monotonic() < until:
            self._round(selector, 0.1)
        return self._code(worker.returncode)

    def _round(self, selector: selectors.BaseSelector, wait_s: float) -> None:
        for key, _ in selector.select(wait_s):
            text = os.read(key.fd, 2**16)
            key.data(text)
            if not text:
                selector.unregister(key.fd)
        self._let_go(time.monotonic() - _HELD_S)

    def _note_life(self, text: bytes) -> None:
        if text:
            self._last = time.monotonic()
        self._spoken = self._spoken or SPOKEN in text
        self._joined = self._joined or JOINED in text

    def _is_still(self) -> bool:
        return self._last is not None and time.monotonic() - self._last > self._settings.heartbeat_s

    def _relay(self, text: bytes) -> None:
        """Hands on whole lines at once; those of the runtime wait, see _HELD_S."""
        *lines, self._partial = (self._partial + text).split(b"\n")
        if not text and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            if self._debug or not _RUNTIME.match(line):
                _say(line)
            else:
                self._held.append((time.monotonic(), line))

    def _let_go(self, until: float) -> None:
        while self._held and self._held[0][0] < until:
            _say(self._held.pop(0)[1])

    def _code(self, code: int) -> int:
        """What the worker's end means for whoever started it; the first sentence about it stays the only one."""
        if code >= 0:
            if not self._spoken:
                self._let_go(float("inf"))
            return code
        if self._spoken:
            return HANG
        number = -code
        if number == signal.SIGABRT:
            lost = "was ended by JAX, which lost another process of the run"
            never = "could not join the other processes within distributed.timeout_s: start all of them"
            return self._end(HANG, (lost if self._joined else never) + self._cause())
        if number in self._told:
            return self._end(128 + number, f"was ended by {signal.Signals(number).name} before it could save")
        return self._end(128 + number, f"was ended by signal {number} ({signal.Signals(number).name})")

    def _cause(self) -> str:
        """The first words of the runtime about it."""
        fatal = next((line for _, line in self._held if line.startswith(b"F")), None)
        if fatal is None:
            return ""
        text = fatal.partition(b"] ")[2].decode(errors="replace").strip()
        return f" ({text[:_MOST_SAID]}); STTTS_DEBUG=1 shows all that it says"

    def _end(self, code: int, what: str) -> int:
        of = self._settings
        _say(f"sttts-jax {of.name}: error: process {of.process} of {of.processes} {what}".encode())
        return code


def _say(line: bytes) -> None:
    os.write(sys.stderr.fileno(), line + b"\n")


def _beat(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(pipe, b".")


if __name__ == "__main__":
    sys.exit(Supervisor(Settings(**json.loads(sys.argv[1]))).run(sys.argv[2:]))
