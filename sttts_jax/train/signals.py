"""What tells a run to end, and waits that hear it.

SIGTERM, SIGHUP and Ctrl-C are looked at between steps: the step is saved, then the run ends. Where a run only waits,
for data or for the compiler, they end the wait at once. A second Ctrl-C ends the process on the spot.

Of several processes one signal stops all of them, at the same place: after a step, or while they wait for the next one,
if none has begun it. For that they pass numbered points (`processes.together`): 2 n when step n is done, 2 n + 1 when
step n + 1 begins. Evaluations and saves lie between two points, so that all take part in them or none.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from types import FrameType
from typing import Any, Self, TypeVar

from absl import logging

from sttts_jax.processes.together import together

T = TypeVar("T")

_LOOK_S = 0.2  # from one look at whether the run is to stop to the next
_WATCHED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class ToldToStop(BaseException):
    """A signal came while the run waited. No Exception: what catches errors of data and questions is not meant."""


class StopSignals:
    """All processes make the same calls in the same order, from the main thread.

    with StopSignals() as signals:
        batch = signals.wait(lambda: next(batches), step - 1)    # changes nothing; a signal ends it by ToldToStop
        signals.begin(step)
        ...
        if signals.asked(step): ...      # at every step, or processes miss each other
    """

    def __init__(self) -> None:
        self._together = together()
        self.interrupted = False  # by Ctrl-C
        self._asked = self._waits = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Catches the signals, but none that the run was started to ignore (nohup, a job in the background)."""
        if threading.current_thread() is not threading.main_thread():  # the launcher's own handling stays
            logging.warning("a signal does not save a checkpoint, because the run is not in the main thread")
            return self
        for number in _WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:
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
        if self._together is not None:
            self._together.ask_to_stop()
            return
        self._asked = True
        if self._waits:
            self._waits = False
            raise ToldToStop

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that may be left at any point: a signal ends it by ToldToStop, one that came before it as well.

        One of several processes does not leave alone: it hears its signal after the block.
        """
        if self._asked:
            raise ToldToStop
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def wait(self, function: Callable[[], T], done: int, name: str = "") -> T:
        """What `function` returns, which may be left at any point: the run stops after step `done` by ToldToStop.

        name: of the thread that calls it, where signals could not reach it otherwise.
        """
        if self._together is None:
            with self.waiting():
                return in_thread(function, name) if name else function()
        result = start_in_thread(function, name or "wait")
        while not result.done():
            wait_for([result], _LOOK_S)
            if self._together.stops_at(2 * done + 1):
                raise ToldToStop
        return result.result()

    def begin(self, step: int) -> None:
        """What only waited is over. Raises ToldToStop where the run stops before this step."""
        if self._together is not None and not self._together.passes(2 * step - 1):
            raise ToldToStop

    def asked(self, step: int) -> bool:
        """Whether the run was told to end: save this step, then stop. Call once a step.

        With several processes all of them get True at the same step, whichever got the signal.
        """
        if self._together is None:
            return self._asked
        return not self._together.passes(2 * step)


def in_thread(function: Callable[[], T], name: str) -> T:
    """What `function` returns or raises. A thread calls it, so that signals reach the caller, who waits for it.

    The compiler, for one, is deaf to them. A caller that leaves leaves the thread behind, see `left_behind`.
    """
    return start_in_thread(function, name).result()


def start_in_thread(function: Callable[[], T], name: str) -> "Future[T]":
    """The result to come."""
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name=f"{_PREFIX}{name}", daemon=True).start()
    return result


_PREFIX = "sttts-"


def left_behind() -> bool:
    """Whether a thread of `in_thread` still works: then the process ends by os._exit, or it waits for the thread."""
    return any(thread.name.startswith(_PREFIX) for thread in threading.enumerate())
