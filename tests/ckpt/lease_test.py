"""A workdir has one owner: a live one is named and left alone, a dead one is told from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sttts_jax.ckpt import lease
from sttts_jax.ckpt.lease import WorkdirTaken, sole_owner
from sttts_jax.ckpt.workdir import Workdir

ROOT = str(Path(__file__).parents[2])
HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from sttts_jax.ckpt.lease import sole_owner
from sttts_jax.ckpt.workdir import Workdir
with sole_owner(Workdir(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _other(workdir: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, ROOT, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_the_first_ones_host_and_id(tmp_path: Path) -> None:
    other = _other(tmp_path)
    try:
        host = lease.socket.gethostname()
        with (
            pytest.raises(WorkdirTaken, match=f"process {other.pid} on {host} trains here"),
            sole_owner(Workdir(tmp_path)),
        ):
            raise AssertionError
    finally:
        other.kill()
        other.wait()
    with sole_owner(Workdir(tmp_path), say=pytest.fail):  # it was killed: its lease lies there, and means nothing
        assert Workdir(tmp_path).lease.exists()
    assert not Workdir(tmp_path).lease.exists()


def test_two_runs_of_one_process_are_two(tmp_path: Path) -> None:
    with sole_owner(Workdir(tmp_path)), pytest.raises(WorkdirTaken), sole_owner(Workdir(tmp_path)):
        raise AssertionError


@pytest.mark.parametrize("alive", [False, True])
def test_an_owner_on_another_machine_is_watched(tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system is shared, the table of processes is not."""
    said: list[str] = []
    holder = lease.filelock.SoftFileLease(str(Workdir(tmp_path).lease), lease_duration=0.6)
    with monkeypatch.context() as there:
        for module in [module for name, module in sys.modules.items() if name.startswith("filelock.")]:
            if hasattr(module, "host_name"):  # where it lives differs between releases
                there.setattr(module, "host_name", lambda: "elsewhere")
        holder.acquire()
    if not alive:
        holder._stop_heartbeat()
    if alive:
        with (
            pytest.raises(WorkdirTaken, match="on elsewhere trains here"),
            sole_owner(Workdir(tmp_path), said.append, 0.6),
        ):
            raise AssertionError
    else:
        with sole_owner(Workdir(tmp_path), said.append, 0.6):
            pass
    assert len(said) == 1 and "on elsewhere is still alive" in said[0]
    holder.release()


def test_only_the_first_process_of_a_job_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole_owner(Workdir(tmp_path)):
        monkeypatch.setattr(lease.jax, "process_index", lambda: 1)
        with sole_owner(Workdir(tmp_path)):
            pass
