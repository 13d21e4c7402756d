"""Event files for TensorBoard, without TensorFlow; written at once, so that a full disk is an error here and not in a
thread that nobody hears.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from sttts_jax.paths import PathLike, as_path

SEEN_AFTER_S = 60.0  # at the latest, by a viewer of a run that goes on


class TensorBoard:
    """One event file a start. The viewer hides what an earlier start wrote after `resume_step`.

    All methods raise OSError where the file cannot be written.
    """

    def __init__(self, directory: PathLike, resume_step: int = 0):
        # Slow to import, and only the first process needs it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import directory_check

        place = os.fspath(as_path(directory))
        directory_check(place)
        self._events = EventsWriter(os.path.join(place, "events"))
        self._flushed = time.monotonic()
        if resume_step:
            self._event(resume_step + 1, file_version="brain.Event:2")
            self._event(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > SEEN_AFTER_S:
            self.flush()

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
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        self._events.close()
