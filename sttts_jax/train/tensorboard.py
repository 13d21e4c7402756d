"""Event files for TensorBoard, without TensorFlow; written at once, so that a full disk is an error here and not in a
thread that nobody hears.

In an object store a flush writes the whole file, so that there another one begins every ROLL_BYTES; a viewer reads them
one after the other.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sttts_jax.paths import PathLike, as_path, is_local

SEEN_AFTER_S = 60.0  # at the latest, by a viewer of a run that goes on
ROLL_BYTES = 4 * 2**20  # of a file in a store


class TensorBoard:
    """One event file a start, in a store several. The viewer hides what an earlier start wrote after `resume_step`.

    All methods raise OSError where the file cannot be written.
    """

    def __init__(self, directory: PathLike, resume_step: int = 0):
        # Slow to import, and only the first process needs it.
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check

        self._place, self._files = os.fspath(as_path(directory)), 0
        directory_check(self._place)
        self._events = self._open()
        self._flushed = time.monotonic()
        if resume_step:
            self._event(resume_step + 1, file_version="brain.Event:2")
            self._event(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        self._bytes, self._files = 0, self._files + 1
        with _as_os_error(self._place):
            return EventsWriter(os.path.join(self._place, "events"), f".{self._files:06d}")

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(step=step, wall_time=time.time(), **content)
        self._events.write_event(event)
        self._bytes += event.ByteSize()
        full = self._bytes > ROLL_BYTES and not is_local(self._place)
        if full or time.monotonic() - self._flushed > SEEN_AFTER_S:
            self.flush()
        if full:
            self.close()
            self._events = self._open()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point a name."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._event(step, summary=scalar(name, float(value)))

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """A histogram already counted on the device: counts [n], edges [n + 1]."""
        from tensorboardX.summary import histogram_raw

        counts, edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
        middle = (edges[:-1] + edges[1:]) / 2
        summary = histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float((counts * middle).sum()),
            sum_squares=float((counts * middle**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
        )
        self._event(step, summary=summary)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3]."""
        from tensorboardX.summary import image

        self._event(step, summary=image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Makes what was written durable."""
        self._flushed = time.monotonic()
        with _as_os_error(self._place):
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with _as_os_error(self._place):
            self._events.close()


@contextlib.contextmanager
def _as_os_error(place: str) -> Iterator[None]:
    """Clients of stores raise errors of many kinds."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, " ".join(str(error).split())[:200], place) from error
