"""A log of every process of a run, and a terminal that shows the first one's.

WORKDIR/logs/process_N.log gets what the loggers of process N say, from INFO on, start after start. In an object store,
where nothing can be appended, every start has files of its own, written at the latest FLUSH_S after a line, anew each
time; the next one begins after ROLL_CHARACTERS. What the first process says reaches its terminal as before; of the
others only errors do.
"""

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import jax
from absl import logging as absl_logging
from etils import epath

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import is_local, write_text

FLUSH_S = 60.0
ROLL_CHARACTERS = 2**20
_LINES = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


@contextlib.contextmanager
def process_log(workdir: Workdir) -> Iterator[None]:
    """The log of this process, as long as the block lasts. A log that cannot be written ends nothing."""
    logging.basicConfig()  # a handler for the terminal, before there is another one
    root, absl = logging.getLogger(), logging.getLogger("absl")
    terminal = [h for h in root.handlers if isinstance(h, logging.StreamHandler) and h.stream is sys.stderr]
    before = [(handler, handler.level) for handler in terminal], absl.level
    handler = _handler(workdir.logs, jax.process_index())
    root.addHandler(handler)
    absl.setLevel(logging.INFO)
    for shown in terminal:
        shown.setLevel(logging.WARNING if jax.process_index() == 0 else logging.ERROR)
    try:
        yield
    finally:
        root.removeHandler(handler)
        absl.setLevel(before[1])
        for shown, level in before[0]:
            shown.setLevel(level)
        handler.close()


def _handler(folder: epath.Path, process: int) -> logging.Handler:
    name = f"process_{process}"
    try:
        stream: TextIO | _Objects
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stream = open(folder / f"{name}.log", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        else:
            stream = _Objects(folder, f"{name}.{time.strftime('%Y%m%d-%H%M%S')}")
    except OSError as error:
        absl_logging.warning("there is no log of this process: %s", error)
        return logging.NullHandler()
    handler = _Handler(stream)
    handler.setLevel(logging.INFO)
    handler.setFormatter(_LINES)
    return handler


class _Handler(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: the line is lost, and the run has its own word for that."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


class _Objects(io.TextIOBase):
    """What is written since the last object was full; a thread writes that one anew now and then.

    Never the thread that logs: it holds the lock of the handler, and the client of the store logs as well.
    """

    def __init__(self, folder: epath.Path, name: str):
        self._folder, self._name, self._number = folder, name, 1
        self._pieces, self._put_last = list[str](), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._put_often, name="process log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        self._pieces.append(text)
        return len(text)

    def _put_often(self) -> None:
        while not self._ended.wait(FLUSH_S):
            self._put()

    def _put(self) -> None:
        """What cannot be written is tried again the next time."""
        count = len(self._pieces)
        text = "".join(self._pieces[:count])
        if count == self._put_last:
            return
        with contextlib.suppress(OSError):
            write_text(self._folder / f"{self._name}.{self._number:03d}.log", text)
            self._put_last = count
            if len(text) > ROLL_CHARACTERS:
                del self._pieces[:count]
                self._number, self._put_last = self._number + 1, 0

    def close(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._put()
        super().close()
