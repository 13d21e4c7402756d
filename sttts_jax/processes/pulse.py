"""What a worker and its supervisor show each other: a byte through a pipe, again and again, while they live.

The names of the two pipes come in an environment variable, from which the worker takes them, so that what it starts
itself is no worker.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable

PIPES = "STTTS_SUPERVISED"
SPOKEN = b"!"  # the worker has said why it ends
JOINED = b"+"  # it has met the other processes
EVERY_S = 0.5


class Pulse:
    """Of the worker. `lost` is called, in a thread, when the supervisor is gone or still for `limit_s`."""

    def __init__(self, pipes: str):
        self._read, self._write = map(int, pipes.split(","))
        os.set_blocking(self._write, False)
        self._last = time.monotonic()

    def start(self, limit_s: float, lost: Callable[[str], None]) -> None:
        """Shows life from here on."""
        threading.Thread(target=self._show, args=(limit_s, lost), name="pulse", daemon=True).start()
        threading.Thread(target=self._look, args=(lost,), name="pulse of the supervisor", daemon=True).start()

    def joined(self) -> None:
        """From here on the other processes can be lost."""
        self._put(JOINED)

    def spoken(self) -> None:
        """Nothing more has to be said about the end of this process."""
        self._put(SPOKEN)

    def _show(self, limit_s: float, lost: Callable[[str], None]) -> None:
        while True:
            self._put(b".")
            time.sleep(EVERY_S)
            if time.monotonic() - self._last > limit_s:
                lost(f"its supervisor showed no life for {limit_s:g} s")

    def _look(self, lost: Callable[[str], None]) -> None:
        while os.read(self._read, 2**12):
            self._last = time.monotonic()
        lost("its supervisor was ended")

    def _put(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # full, or nobody reads: the other thread finds that out
            os.write(self._write, text)


def take_pulse() -> Pulse | None:
    """That of this process, if a supervisor started it; None the next time."""
    pipes = os.environ.pop(PIPES, "")
    return Pulse(pipes) if pipes else None
