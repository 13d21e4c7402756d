"""Ends a run that hangs: a deadline for the first step, one for later ones, stacks of all threads, an exit code."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from sttts_jax.exit_codes import HANG
from sttts_jax.processes.together import together


class Watchdog:
    """A thread that ends the process when `beat` does not come in time. A deadline of 0 is none.

    startup_s: from `start` to the first beat (compilation, restore); step_s: between beats. The process ends by
    os._exit, because a hung collective cannot be interrupted; saves in flight are lost, committed checkpoints are not.
    """

    def __init__(self, startup_s: float, step_s: float):
        if startup_s < 0 or step_s < 0:
            raise ValueError(f"watchdog deadlines {startup_s}, {step_s} must not be negative; use 0 for none")
        self._startup_s, self._step_s = startup_s, step_s
        self._condition = threading.Condition()
        self._limit, self._due, self._closed, self._last = 0.0, float("inf"), False, "start"
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> "Watchdog":
        """Arms the startup deadline."""
        self._arm(self._startup_s, "start")
        self._thread.start()
        return self

    def beat(self, what: str) -> None:
        """Progress was made; `what` (such as 'step 12') is named if it is the last sign of life."""
        self._arm(self._step_s, what)

    @contextlib.contextmanager
    def paused(self, what: str, limit_s: float = 0.0) -> Iterator[None]:
        """For saves and evals: the block gets its own deadline (0: none), then the step deadline starts anew."""
        self._arm(limit_s, what)
        try:
            yield
        finally:
            self._arm(self._step_s, f"end of {what}")

    def close(self) -> None:
        """Disarms; the thread ends."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _arm(self, limit_s: float, what: str) -> None:
        with self._condition:
            self._limit, self._last = limit_s, what
            self._due = time.monotonic() + limit_s if limit_s else float("inf")
            self._condition.notify()

    def _watch(self) -> None:
        with self._condition:
            while not self._closed:
                self._wait()

    def _wait(self) -> None:
        left = self._due - time.monotonic()
        if left <= 0:
            self._end()
        self._condition.wait(None if left == float("inf") else left)

    def _end(self) -> None:
        sys.stderr.write(
            f"watchdog: nothing since {self._last} for {self._limit:g} s; stacks of all threads follow, "
            f"then exit {HANG} (watchdog deadlines are in the config)\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        others = together()
        if others is not None:
            others.tell(HANG, f"nothing went on since {self._last} for {self._limit:g} s (watchdog deadlines)")
        os._exit(HANG)
