"""Profiler traces: of a window of steps that the config names, and of the next steps whenever a signal asks."""

import os
import shutil
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax

from sttts_jax.paths import PathLike, as_path, is_local, write_bytes

ON_DEMAND = signal.SIGUSR1


@dataclass(frozen=True)
class ProfileConfig:
    """Profiler traces of some steps, in WORKDIR/profile.

    first           step to begin with, 1 is the first of the run; it should lie past 2, or the trace shows compilation
    steps           steps to trace, 0 for none
    on_demand       steps to trace when a process gets SIGUSR1, which traces that process
    """

    first: int = 10
    steps: int = 0
    on_demand: int = 3

    def check(self) -> Self:
        """Itself. Raises ValueError on a window that cannot be."""
        if self.first < 1 or self.steps < 0:
            raise ValueError(f"profile.first={self.first} must be at least 1 and profile.steps={self.steps} at least 0")
        if self.on_demand < 1:
            raise ValueError(f"profile.on_demand={self.on_demand} must be at least 1")
        return self


class ProfileWindow:
    """Call `before(step)` ahead of every step and `close()` at the end; TensorBoard reads DIR/plugins/profile.

    A trace that is asked for while another one runs begins when that one ends.
    """

    def __init__(self, config: ProfileConfig, directory: PathLike):
        config.check()
        self._config, self._directory = config, as_path(directory)
        self._place = ""  # where the running trace is written
        self._end = 0  # the step ahead of which it ends
        self._asked = False
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(ON_DEMAND, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def before(self, step: int, last: Any = None) -> None:
        """Starts the trace at the first step of the window, ends it after the last; none in a run resumed past `first`.

        `last`: arrays of the step before, waited for when the trace ends.
        """
        if self._place and step >= self._end:
            self._stop(last)
        if self._place:
            return
        if self._config.steps and step == self._config.first:
            self._start(step + self._config.steps)
        elif self._asked:
            self._asked = False
            self._start(step + self._config.on_demand)

    def _start(self, end: int) -> None:
        """The profiler writes to mounted file systems alone."""
        local = is_local(self._directory)
        self._place = os.fspath(self._directory) if local else tempfile.mkdtemp(prefix="sttts-profile-")
        self._end = end
        jax.profiler.start_trace(self._place)

    def _stop(self, last: Any) -> None:
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        place, self._place = Path(self._place), ""
        if is_local(self._directory):
            return
        for file in (file for file in place.rglob("*") if file.is_file()):
            write_bytes(self._directory / file.relative_to(place).as_posix(), file.read_bytes())
        shutil.rmtree(place)

    def close(self, last: Any = None) -> None:
        """Ends a running trace; waits for `last` (arrays of the last step), so that it is whole."""
        if self._place:
            self._stop(last)
        if self._before is not None:
            signal.signal(ON_DEMAND, self._before)
            self._before = None
