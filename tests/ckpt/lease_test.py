"""A workdir has one owner: a live one is named and left alone, a dead one is told from it."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.ckpt import lease, store_lease
from sttts_jax.ckpt.lease import WorkdirTaken, sole_owner
from sttts_jax.ckpt.machine import name_of_this_machine
from sttts_jax.ckpt.workdir import Workdir
from tests.fake_gcs import FakeGcs

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
        host = socket.gethostname()
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


def _object(**about: str) -> str:
    return json.dumps({"pid": "7", "host": "elsewhere?pidns-1", **about})


def test_a_lease_in_a_store_is_one_process_at_a_time(gcs: FakeGcs) -> None:
    workdir = Workdir("gs://lease-one/run")
    with sole_owner(workdir):
        taken = f"process {os.getpid()} on {socket.gethostname()} trains here"
        with pytest.raises(WorkdirTaken, match=taken), sole_owner(workdir, say=pytest.fail):
            raise AssertionError
        assert "lease-one/run/lease" in gcs.objects
    assert "lease-one/run/lease" not in gcs.objects
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gcs.put("lease-one/run/lease", _object(pid=str(dead.pid), host=name_of_this_machine()).encode(), {})
    with sole_owner(workdir, say=pytest.fail):  # its lease lies there, and means nothing
        pass


@pytest.mark.parametrize("alive", [False, True])
def test_an_owner_of_a_lease_in_a_store_is_watched(gcs: FakeGcs, alive: bool) -> None:
    said: list[str] = []
    key, workdir = f"lease-watched/{alive}/lease", Workdir(f"gs://lease-watched/{alive}")
    gcs.put(key, _object().encode(), {})
    if alive:
        sign_of_life = threading.Timer(0.3, gcs.put, (key, _object().encode(), {}))
        sign_of_life.start()
        taken = "process 7 on elsewhere trains here"
        with pytest.raises(WorkdirTaken, match=taken), sole_owner(workdir, said.append, 1.0):
            raise AssertionError
    else:
        with sole_owner(workdir, said.append, 0.5):
            assert json.loads(gcs.objects[key].data)["pid"] == str(os.getpid())
    assert len(said) == 1 and "process 7 on elsewhere is still alive" in said[0]


def test_who_loses_the_lease_of_a_store_ends(gcs: FakeGcs, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was silent for so long that another one took it: two would write the same checkpoints."""
    codes: list[int] = []
    monkeypatch.setattr(store_lease.os, "_exit", codes.append)
    held = store_lease.StoreLease(Workdir("gs://lease-lost/run").lease, 0.3)
    assert held.acquire()
    gcs.put("lease-lost/run/lease", _object().encode(), {})
    end = time.monotonic() + 10
    while not codes and time.monotonic() < end:
        time.sleep(0.05)
    held.release()
    assert codes[:1] == [store_lease.LOST]
    assert "process 7 on elsewhere trains here now, because this process gave no sign of life" in capfd.readouterr().err
    assert "lease-lost/run/lease" in gcs.objects  # it is the other one's
