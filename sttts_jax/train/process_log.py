"""A log of every process of a run, and a terminal that shows the first one's.

WORKDIR/logs/process_N.log gets what the loggers of process N say, from INFO on, start after start. In an object store,
where nothing can be appended, every start has files of its own, written at the latest FLUSH_S after a line, anew each
time and therefore no longer than ROLL_CHARACTERS. What the first process says reaches its terminal as before; of the
others only errors do.
"""

import contextlib
import io
import logging
import sys
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
        stream: TextIO
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


class _Objects(io.StringIO):
    """What is written since the last object was full; that one is written anew at every flush."""

    def __init__(self, folder: epath.Path, name: str):
        super().__init__()
        self._folder, self._name, self._number = folder, name, 1
        self._flushed = time.monotonic()

    def flush(self) -> None:
        """Called after every line, heard now and then."""
        full = self.tell() > ROLL_CHARACTERS
        if full or time.monotonic() - self._flushed > FLUSH_S:
            self._put()
        if full:
            self._number += 1
            self.seek(0)
            self.truncate()

    def _put(self) -> None:
        self._flushed = time.monotonic()
        if self.tell():
            write_text(self._folder / f"{self._name}.{self._number:03d}.log", self.getvalue())

    def close(self) -> None:
        if not self.closed:
            with contextlib.suppress(OSError):
                self._put()
        super().close()
