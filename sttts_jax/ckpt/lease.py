"""One run at a time in a workdir: a second one is refused, told who is there, and a dead one is told from a live one.

The lease is a file in the workdir that its holder writes every few seconds: locally `filelock.SoftFileLease`, in an
object store `ckpt.store_lease`. On the same machine a holder that is dead is known at once; one on another machine is
watched until it has shown no life for LEASE_S, by the clock of the one who watches. All processes of a job are one
owner: the first one holds the lease for them.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import filelock
import jax
from etils import epath

from sttts_jax.ckpt.machine import names_of_this_machine
from sttts_jax.ckpt.store_lease import StoreLease
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.distributed import gather_json
from sttts_jax.paths import is_local, write_text

SHARED_S = 5.0  # that what one process writes may need to be seen by the others
LEASE_S = 60.0  # without a sign of life; there is one every third of it


class WorkdirTaken(ValueError):
    """Another run is at work in the workdir."""


class Lease(Protocol):
    """What one process at a time holds. `lease_s`: seconds without a sign of life after which a holder is dead."""

    lease_s: float

    def acquire(self) -> bool:
        """Takes it where it is free at once."""
        ...

    def watch(self) -> bool:
        """Takes it where its holder shows no life for `lease_s`."""
        ...

    def holder(self) -> tuple[str, str]:
        """(process id, host)."""
        ...

    def release(self) -> None:
        """Gives it back."""
        ...


@contextlib.contextmanager
def sole_owner(workdir: Workdir, say: Callable[[str], None] = print, lease_s: float = LEASE_S) -> Iterator[None]:
    """Holds the workdir for this run; makes it where it is not there. All processes must enter.

    say: gets a line where the holder is on another machine, which takes up to `lease_s` to be believed dead.
    Raises WorkdirTaken, in every process, naming the host and the process that are at work there.
    """
    lease: Lease | None = None
    problem = ""
    if jax.process_index() == 0:
        workdir.root.mkdir(parents=True, exist_ok=True)
        lease = (_FileLease if is_local(workdir.root) else StoreLease)(workdir.lease, lease_s)
        problem = _acquire(lease, say)
    problem = gather_json(problem)[0]
    if problem:
        raise WorkdirTaken(f"{workdir.root}: {problem}")
    try:
        _check_shared(workdir)
        yield
    finally:
        if lease is not None:
            lease.release()


def _check_shared(workdir: Workdir) -> None:
    """Raises ValueError, in every process, where one of them does not see what the first one writes."""
    if jax.process_count() == 1:
        return
    first, told = jax.process_index() == 0, gather_json(uuid.uuid4().hex)[0]
    if first:
        write_text(workdir.shared, told)
    gather_json(None)
    seen = gather_json([_sees(workdir, told), socket.gethostname()])
    if first:
        workdir.shared.unlink(missing_ok=True)
    blind = [f"process {number} on {host}" for number, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise ValueError(
            f"{workdir.root}: {', '.join(blind)} cannot see what process 0 on {seen[0][1]} writes there; put the "
            "workdir where all hosts see it: gs://, or a file system that they share"
        )


def _sees(workdir: Workdir, told: str) -> bool:
    """Network file systems answer from memory for some seconds."""
    until = time.monotonic() + SHARED_S
    while (seen := _read(workdir.shared)) != told and time.monotonic() < until:
        time.sleep(0.1)
    return seen == told


def _read(file: epath.Path) -> str:
    """'' where there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _acquire(lease: Lease, say: Callable[[str], None]) -> str:
    """'' when the lease is held, else why not."""
    if lease.acquire():
        return ""
    process, host = lease.holder()
    who = f"process {process} on {host.split('?')[0]}"
    taken = f"{who} trains here; use another workdir, or end that run first"
    if host in names_of_this_machine():
        return taken
    say(f"waiting up to {lease.lease_s:.0f} s to see whether {who} is still alive")
    return "" if lease.watch() else taken


class _FileLease:
    """A file of a mounted file system."""

    def __init__(self, path: epath.Path, lease_s: float):
        self.lease_s = lease_s
        # Not of one thread alone: the run may be closed by another one than it was opened by.
        self._lease = filelock.SoftFileLease(os.fspath(path), lease_duration=lease_s, thread_local=False)

    def acquire(self) -> bool:
        return self._try(blocking=False)

    def watch(self) -> bool:
        return self._try(timeout=self.lease_s + 1)

    def _try(self, **how: Any) -> bool:
        try:
            self._lease.acquire(**how)
        except filelock.Timeout:
            return False
        return True

    def holder(self) -> tuple[str, str]:
        """As the file says them in lines such as `pid=12`."""
        try:
            lines = Path(self._lease.lock_file).read_text().splitlines()
            words = dict(line.split("=", 1) for line in lines if "=" in line)
        except (OSError, ValueError):  # it went away, or is of nobody
            words = {}
        return words.get("pid", "?"), words.get("host", "?")

    def release(self) -> None:
        self._lease.release()
