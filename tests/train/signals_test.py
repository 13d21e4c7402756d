"""What a run hears of signals between steps and while it waits, and what a second Ctrl-C does."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sttts_jax.train.signals import StopSignals, ToldToStop, in_thread, left_behind

ROOT = str(Path(__file__).parents[2])
ALL = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)


@pytest.fixture(autouse=True)
def _as_in_the_foreground() -> Iterator[None]:
    """Jobs in the background are started to ignore some signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@ALL
def test_a_signal_is_heard_at_the_next_step(number: int) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    with StopSignals() as signals:
        assert not signals.asked(1)
        os.kill(os.getpid(), number)
        assert signals.asked(2) and signals.interrupted == (number == signal.SIGINT)
        with pytest.raises(ToldToStop), signals.waiting():
            raise AssertionError("a wait that begins afterwards is none")
    assert {n: signal.getsignal(n) for n in before} == before


@ALL
def test_a_wait_ends_at_once(number: int) -> None:
    with StopSignals() as signals:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        begin = time.monotonic()
        with pytest.raises(ToldToStop), signals.waiting():
            in_thread(lambda: time.sleep(3), "deaf")  # as a compiler is
        assert time.monotonic() - begin < 2 and left_behind()


def test_what_a_thread_makes_or_raises_is_the_callers() -> None:
    assert in_thread(lambda: 3, "three") == 3
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0, "zero")


def test_ignored_signals_stay_ignored() -> None:
    """nohup, and jobs that a shell starts in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.asked(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_at_once() -> None:
    code = """
        import os, signal, sys, time
        sys.path.insert(0, sys.argv[1])
        from sttts_jax.train.signals import StopSignals
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            print("saving", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), ROOT], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGINT and ended.stdout == "saving\n"
