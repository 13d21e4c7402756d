"""What tells a run to end, and waits that hear it.

SIGTERM, SIGHUP and Ctrl-C are looked at between steps: the step is saved, then the run ends. Where a run only waits,
for data or for the compiler, they end the wait at once. A second Ctrl-C ends the process on the spot.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, Self, TypeVar

import jax
from absl import logging
from jax.experimental import multihost_utils

T = TypeVar("T")

_WATCHED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class ToldToStop(BaseException):
    """A signal came while the run waited. No Exception: what catches errors of data and questions is not meant."""


class StopSignals:
    """All processes make the same calls in the same order, from the main thread.

    with StopSignals() as signals:
        with signals.waiting():          # changes nothing; a signal ends it by ToldToStop
            batch = next(batches)
        ...
        if signals.asked(step): ...      # at every step, or processes miss each other
    """

    def __init__(self) -> None:
        self.interrupted = False  # by Ctrl-C
        self._asked = self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Catches the signals, but none that the run was started to ignore (nohup, a job in the background)."""
        if threading.current_thread() is not threading.main_thread():  # the launcher's own handling stays
            logging.warning("a signal does not save a checkpoint, because the run is not in the main thread")
            return self
        for number in _WATCHED:
            of_jax = number == signal.SIGTERM and jax.distributed.is_initialized()
            if not of_jax and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one finds no Python that may be busy
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # of which JAX tells the other processes
            return
        self._asked = True
        if self._waits:
            self._waits = False
            raise ToldToStop

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that may be left at any point: a signal ends it by ToldToStop, one that came before it as well.

        One of several processes does not leave alone: its signal is heard at the next step.
        """
        if self._asked:
            raise ToldToStop
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def asked(self, step: int) -> bool:
        """Whether the run was told to end: save this step, then stop. Call once a step.

        With several processes all of them get True at the same step, whichever got the signal.
        """
        if jax.distributed.is_initialized():
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked


def in_thread(function: Callable[[], T], name: str) -> T:
    """What `function` returns or raises. A thread calls it, so that signals reach the caller, who waits for it.

    The compiler, for one, is deaf to them. A caller that leaves leaves the thread behind, see `left_behind`.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name=f"{_PREFIX}{name}", daemon=True).start()
    return result.result()


_PREFIX = "sttts-"


def left_behind() -> bool:
    """Whether a thread of `in_thread` still works: then the process ends by os._exit, or it waits for the thread."""
    return any(thread.name.startswith(_PREFIX) for thread in threading.enumerate())
