"""Commands as several processes: one order of data, one end, and one sentence about it."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sttts_jax.api import evaluate
from sttts_jax.ckpt.files import list_steps
from sttts_jax.exit_codes import HANG, MISTAKE, PREEMPTED
from sttts_jax.train.metric_lines import read_lines
from tests.multiprocess.group import Group

pytestmark = pytest.mark.multiprocess
STEPS = 16
JOINED = "local devices"


def _train(clips: Path, workdir: Path, *settings: str) -> list[str]:
    config = f"tests/multiprocess/config.py:data_dir={clips},steps={STEPS}"
    return ["train", "--config", config, "--workdir", str(workdir), *settings]


def _losses(workdir: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(workdir / "metrics.jsonl")}


def test_any_number_of_processes_trains_the_same_run(clips: Path, tmp_path: Path) -> None:
    """One trains to the end. Two begin the same run, SIGTERM to one stops both at a saved step, four with another mesh
    go on; then two evaluate what one evaluates.
    """
    one, several = tmp_path / "one", tmp_path / "several"
    assert Group(_train(clips, one), tmp_path / "1", 1, 4).finish() == [0]

    two = Group(_train(clips, several, "--config.checkpoint.every=100"), tmp_path / "2", 2, 2)
    two.wait_for(0, f"step 2/{STEPS}")
    two.running[1].send_signal(signal.SIGTERM)
    assert two.finish() == [PREEMPTED, PREEMPTED], two.text(0)[-2000:]
    (saved,) = list_steps(several / "checkpoints")
    assert 2 <= saved < STEPS and f"told to stop: step {saved} is saved" in two.text(0)

    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    four = Group(_train(clips, several, *mesh), tmp_path / "4", 4, 1)
    assert four.finish() == [0] * 4, four.text(0)[-2000:]
    assert f"resumed from step {saved}" in four.text(0) and list_steps(several / "checkpoints")[-1] == STEPS
    expected, found = _losses(one), _losses(several)
    assert expected.keys() == found.keys() == set(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-4)

    words = ["evaluate", "--workdir", str(several), "--tasks", "shapes_video_qa", "--limit", "12", "--batch", "8"]
    asking = Group([*words, "--out", str(tmp_path / "eval")], tmp_path / "asking", 2, 4)
    ours = evaluate(several, "shapes_video_qa", limit=12, batch=8, out=tmp_path / "alone")[0].results[0][0]
    assert asking.finish() == [0, 0], asking.text(0)[-2000:]
    told = evaluate(several, "shapes_video_qa", limit=12, batch=8, out=tmp_path / "eval")[0].results[0][0]
    assert told.overall == ours.overall  # read, not measured again
    assert f"{100 * ours.overall.accuracy.value:.1f}" in asking.text(0) and "accuracy" not in asking.text(1)


def _one_sentence(text: str) -> str:
    """That of the end; nothing of the runtime's pages, no traceback."""
    told = [line for line in text.splitlines() if line.startswith("sttts-jax")]
    assert len(told) == 1 and "Traceback" not in text and "***" not in text, text[-3000:]
    return told[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_an_error_in_one_ends_all(clips: Path, place: Path, tmp_path: Path) -> None:
    wrong = {1: ("--config.init_from=/nowhere",)}
    group = Group(_train(clips, place), tmp_path, 2, 1, wrong)
    group.wait_for(1, JOINED)
    begin = time.monotonic()
    assert group.finish() == [MISTAKE, MISTAKE]
    assert time.monotonic() - begin < 30
    assert "the run ends with process 1 of 2 on " in group.text(0) and "/nowhere holds no" in _one_sentence(
        group.text(0)
    )
    assert "sttts-jax train: error: /nowhere holds no whole checkpoint" in _one_sentence(group.text(1))


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_all(victim: int, clips: Path, place: Path, tmp_path: Path) -> None:
    group = Group(_train(clips, place), tmp_path, 2, 1)
    group.wait_for(0, JOINED)
    os.kill(group.worker(victim), signal.SIGKILL)
    codes = group.finish(40)
    assert codes[victim] == 128 + signal.SIGKILL and codes[1 - victim] == HANG
    assert f"process {victim} of 2 was ended by signal 9 (SIGKILL)" in _one_sentence(group.text(victim))
    assert ("it showed no life for 8 s" if victim else "process") in _one_sentence(group.text(1 - victim))


def test_one_that_is_stopped_ends_all(clips: Path, place: Path, tmp_path: Path) -> None:
    group = Group(_train(clips, place), tmp_path, 2, 1)
    group.wait_for(1, JOINED)
    os.kill(group.worker(1), signal.SIGSTOP)
    assert group.finish(40) == [HANG, HANG]
    assert "process 1 of 2 showed no life for 8 s and was ended" in _one_sentence(group.text(1))
    assert "the run ends with process 1 of 2: it showed no life" in _one_sentence(group.text(0))


def _is_gone(pid: int) -> bool:
    """Within some seconds; a process that ended stays in the table until somebody asks how."""
    status, until = Path(f"/proc/{pid}/status"), time.monotonic() + 15
    while status.exists() and "State:\tZ" not in status.read_text():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_one_whose_supervisor_is_killed_ends_all(clips: Path, place: Path, tmp_path: Path) -> None:
    """What a launcher knows of is the supervisor."""
    group = Group(_train(clips, place), tmp_path, 2, 1)
    group.wait_for(1, JOINED)
    worker = group.worker(1)
    group.running[1].kill()
    assert group.finish(40) == [HANG, -signal.SIGKILL]
    assert "its supervisor was ended" in _one_sentence(group.text(0))
    assert _is_gone(worker)


def test_a_hang_of_one_ends_all(clips: Path, place: Path, tmp_path: Path) -> None:
    """Here the deadline of its first step is too short for the compiler."""
    group = Group(_train(clips, place), tmp_path, 2, 1, {1: ("--config.watchdog.startup_s=0.5",)})
    assert group.finish(60) == [HANG, HANG]
    assert "watchdog: nothing since" in group.text(1) and "stacks of all threads follow" in group.text(1)
    assert "process 1 of 2" in _one_sentence(group.text(0)) and "nothing went on since" in group.text(0)


def test_a_workdir_that_is_not_shared_is_refused(clips: Path, place: Path, tmp_path: Path) -> None:
    other = {1: ("--workdir", str(tmp_path / "other"))}
    group = Group(_train(clips, place), tmp_path, 2, 1, other)
    assert group.finish(60) == [MISTAKE, MISTAKE]
    for number in (0, 1):
        assert "put the workdir where all hosts see it" in _one_sentence(group.text(number))


def test_a_coordinator_that_never_answers(clips: Path, place: Path, tmp_path: Path) -> None:
    group = Group(_train(clips, place, "--config.distributed.timeout_s=3"), tmp_path, 2, 1, only=[1])
    assert group.finish(60) == [HANG]
    assert "could not join the other processes" in _one_sentence(group.text(0))
