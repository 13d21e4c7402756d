"""The watchdog ends a process that hangs, shows where, and leaves one that makes progress alone."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sttts_jax.exit_codes import HANG
from sttts_jax.train.watchdog import Watchdog

ROOT = str(Path(__file__).parents[2])


def run(body: str) -> subprocess.CompletedProcess[str]:
    head = "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom sttts_jax.train.watchdog import Watchdog\n"
    command = [sys.executable, "-c", head + textwrap.dedent(body), ROOT]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_hung_step_ends_with_stacks() -> None:
    ended = run(
        """
        def stuck_in_a_collective():
            time.sleep(60)
        dog = Watchdog(startup_s=30, step_s=0.2).start()
        dog.beat("step 7")
        stuck_in_a_collective()
        """
    )
    assert ended.returncode == HANG
    assert "nothing since step 7 for 0.2 s" in ended.stderr and "stuck_in_a_collective" in ended.stderr


def test_a_hung_start_ends() -> None:
    ended = run("Watchdog(startup_s=0.2, step_s=0).start()\ntime.sleep(60)")
    assert ended.returncode == HANG and "nothing since start" in ended.stderr


def test_progress_pauses_and_close_leave_a_run_alone() -> None:
    """Nothing fires in a pause, or after the end; what is armed behind them does."""
    ended = run(
        """
        dog = Watchdog(startup_s=0.5, step_s=0.5).start()
        with dog.paused("eval"):
            time.sleep(0.8)
        print("paused", flush=True)
        dog.beat("step 1")
        dog.close()
        time.sleep(0.8)
        print("closed", flush=True)
        Watchdog(startup_s=0.1, step_s=0).start()
        time.sleep(30)
        """
    )
    assert ended.stdout.split() == ["paused", "closed"]
    assert ended.returncode == HANG and "nothing since start for 0.1 s" in ended.stderr


def test_no_deadlines_wait_for_ever_and_a_later_one_counts() -> None:
    ended = run(
        """
        dog = Watchdog(startup_s=0, step_s=0).start()
        time.sleep(0.3)
        dog.beat("step 1")
        time.sleep(0.3)
        print("waited", flush=True)
        with dog.paused("save", 0.1):
            time.sleep(30)
        """
    )
    assert ended.stdout.split() == ["waited"]
    assert ended.returncode == HANG and "nothing since save for 0.1 s" in ended.stderr


def test_negative_deadlines_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Watchdog(-1, 0)
