"""One run at a time in a workdir: a second one is refused, told who is there, and a dead one is told from a live one.

The lease is a file in the workdir that its holder touches every few seconds (`filelock.SoftFileLease`). On the same
machine a holder that is dead is known at once; one on another machine that shares the file system is watched until it
has shown no life for LEASE_S, by the clock of the one who watches. All processes of a job are one owner: the first one
holds the lease for them. Object stores (gs://) have no such file; nothing guards a workdir there.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import jax

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.distributed import gather_json
from sttts_jax.paths import is_local

LEASE_S = 60.0  # without a sign of life; there is one every third of it


class WorkdirTaken(ValueError):
    """Another run is at work in the workdir."""


@contextlib.contextmanager
def sole_owner(workdir: Workdir, say: Callable[[str], None] = print, lease_s: float = LEASE_S) -> Iterator[None]:
    """Holds the workdir for this run; makes it where it is not there. All processes must enter.

    say: gets a line where the holder is on another machine, which takes up to `lease_s` to be believed dead.
    Raises WorkdirTaken, in every process, naming the host and the process that are at work there.
    """
    lease, problem = None, ""
    if jax.process_index() == 0 and is_local(workdir.root):
        workdir.root.mkdir(parents=True, exist_ok=True)
        # Not of one thread alone: the run may be closed by another one than it was opened by.
        lease = filelock.SoftFileLease(os.fspath(workdir.lease), lease_duration=lease_s, thread_local=False)
        problem = _acquire(lease, say)
    problem = gather_json(problem)[0]
    if problem:
        raise WorkdirTaken(f"{workdir.root}: {problem}")
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def _acquire(lease: filelock.SoftFileLease, say: Callable[[str], None]) -> str:
    """'' when the lease is held, else why not."""
    try:
        lease.acquire(blocking=False)
        return ""
    except filelock.Timeout:
        pass
    process, host = _holder(lease)
    who = f"process {process} on {host.split('?')[0]}"
    taken = f"{who} trains here; use another workdir, or end that run first"
    if host in _names_of_this_machine():
        return taken
    say(f"waiting up to {lease.lease_duration:.0f} s to see whether {who} is still alive")
    try:
        lease.acquire(timeout=lease.lease_duration + 1)
        return ""
    except filelock.Timeout:
        return taken


def _holder(lease: filelock.SoftFileLease) -> tuple[str, str]:
    """(process id, host), as the file says them in lines such as `pid=12`."""
    try:
        words = dict(line.split("=", 1) for line in Path(lease.lock_file).read_text().splitlines() if "=" in line)
    except (OSError, ValueError):  # it went away, or is of nobody
        words = {}
    return words.get("pid", "?"), words.get("host", "?")


def _names_of_this_machine() -> set[str]:
    """As leases have them: in a container the namespace of its process ids is a part."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return {name, f"{name}?pidns-{os.stat('/proc/self/ns/pid').st_ino:x}"}
    return {name}
