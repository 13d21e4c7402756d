"""A supervisor and its command: what it hands on, what it holds back, how it reads an end. No JAX."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FATAL = "F1130 17:52:46.123456   12 client.cc:80] Terminating process because the JAX distributed service is gone"
HEAD = """
import os, signal, sys, time
from sttts_jax.processes.pulse import take_pulse
pulse = take_pulse()
assert pulse is not None and take_pulse() is None
pulse.start(30, lambda what: os._exit(9))
"""


def _start(body: str, **env: str) -> "subprocess.Popen[str]":
    settings = json.dumps({"name": "train", "process": 1, "processes": 4, "heartbeat_s": 2})
    command = [sys.executable, "-c", HEAD + textwrap.dedent(body)]
    return subprocess.Popen(
        [sys.executable, "-m", "sttts_jax.processes.supervisor", settings, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(body: str, **env: str) -> tuple[int, str, str]:
    process = _start(body, **env)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_what_a_command_says_and_its_code_are_handed_on() -> None:
    warning = "W1130 17:52:46.123456   12 cpu.cc:80] slow"
    say = f"print('out'); print('err', file=sys.stderr); print({warning!r}, file=sys.stderr)"
    code, out, err = _run(f"{say}; sys.exit(42)")
    assert (code, out) == (42, "out\n") and err.splitlines() == ["err", warning]


@pytest.mark.parametrize(
    ("joins", "what"),
    [
        ("pulse.joined()", "was ended by JAX, which lost another process of the run"),
        ("", "could not join the other processes within distributed.timeout_s: start all of them"),
    ],
)
def test_pages_of_the_runtime_become_one_sentence(joins: str, what: str) -> None:
    body = f"""
    {joins}
    sys.stderr.write({FATAL!r} + "\\n*** Check failure stack trace: ***\\n    @ 0x7f  abort\\n")
    sys.stderr.flush()
    os.abort()
    """
    code, _, err = _run(body)
    assert code == 170 and err.splitlines() == [
        f"sttts-jax train: error: process 1 of 4 {what} (Terminating process because the JAX distributed service is "
        "gone); STTTS_DEBUG=1 shows all that it says"
    ]
    assert FATAL in _run(body, STTTS_DEBUG="1")[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGSEGV, 139)], ids=["KILL", "SEGV"])
def test_a_signal_is_named(number: int, code: int) -> None:
    got, _, err = _run(f"os.kill(os.getpid(), {int(number)})")
    assert got == code and f"process 1 of 4 was ended by signal {int(number)} ({signal.Signals(number).name})" in err


def test_an_end_that_was_explained_is_not_explained_again() -> None:
    code, _, err = _run("print('why', file=sys.stderr); pulse.spoken(); os.abort()")
    assert (code, err) == (170, "why\n")


def test_a_command_that_is_stopped_is_ended() -> None:
    code, _, err = _run("time.sleep(1); os.kill(os.getpid(), signal.SIGSTOP)")
    assert code == 170 and "process 1 of 4 showed no life for 2 s and was ended" in err


def test_signals_are_handed_on_and_a_lost_supervisor_is_noticed() -> None:
    body = """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
    print(os.getpid(), flush=True)
    time.sleep(60)
    """
    told = _start(body)
    told.stdout.readline()
    told.terminate()
    assert told.wait(20) == 42
    killed = _start(body)
    worker = int(killed.stdout.readline())
    killed.kill()
    killed.wait(20)
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
