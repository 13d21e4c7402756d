"""The lease of a workdir in an object store: one object, written only over the version that was last seen.

Of two that write over the same version the store lets one, so one gets the lease. The holder writes it anew every third
of `lease_s`; who finds it watches until it has stayed the same for `lease_s`, by its own clock.
"""

import json
import os
import sys
import threading
import time
from typing import Any

import tensorstore as ts
from absl import logging
from etils import epath

from sttts_jax.ckpt.machine import name_of_this_machine
from sttts_jax.ckpt.ocdbt import base_store

LOST = 2  # exit code of a process whose workdir another one took: its user has two runs to choose from


class StoreLease:
    """The object at `path`. What the store refuses is raised as TensorStore says it."""

    def __init__(self, path: epath.Path, lease_s: float):
        self.lease_s = lease_s
        self._path, self._key = path, path.name
        self._store = ts.KvStore.open(base_store(path.parent)).result()
        self._mine: Any = b""  # the version that this process wrote last
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lease", daemon=True)

    def acquire(self) -> bool:
        """Whether the lease was free, or of a process of this machine that is dead."""
        found = self._read()
        free = found.state == "missing" or _is_dead(*_holder(found.value))
        return free and self._take(found.stamp.generation)

    def watch(self) -> bool:
        """Takes the lease when it was deleted, or was not written for `lease_s`; False when it was written."""
        first = self._read().stamp.generation
        end = time.monotonic() + self.lease_s
        while time.monotonic() < end:
            time.sleep(self.lease_s / 20)
            now = self._read()
            if now.stamp.generation != first:
                return now.state == "missing" and self._take(now.stamp.generation)
        return self._take(first)

    def holder(self) -> tuple[str, str]:
        """(process id, host) that the object names."""
        return _holder(self._read().value)

    def release(self) -> None:
        """Deletes the object, if it is this process's."""
        self._ended.set()
        self._beats.join()
        self._store.write(self._key, None, if_equal=self._mine).result()

    def _read(self) -> Any:
        return self._store.read(self._key).result()

    def _take(self, over: Any) -> bool:
        if not self._write(over):
            return False
        self._beats.start()
        return True

    def _write(self, over: Any) -> bool:
        """Whether `over` was still the version to write over."""
        text = json.dumps({"pid": str(os.getpid()), "host": name_of_this_machine(), "written": time.time()})
        written = self._store.write(self._key, text, if_equal=over).result().generation
        if not written:  # refused; but a write whose answer was lost is tried again, and then meets itself
            now = self._read()
            written = now.stamp.generation if now.value == text.encode() else b""
        self._mine = written or self._mine
        return bool(written)

    def _beat(self) -> None:
        while not self._ended.wait(self.lease_s / 3):
            try:
                still_mine = self._write(self._mine)
            except Exception as error:  # the store does not answer: the next time tells
                logging.warning("the lease %s could not be written (%s)", self._path, str(error)[:200])
                continue
            if not still_mine:
                self._end()

    def _end(self) -> None:
        """Two runs must not write the same checkpoints, and this one was silent for too long."""
        process, host = self.holder()
        sys.stderr.write(
            f"{self._path}: process {process} on {host.split('?')[0]} trains here now, because this process gave no "
            f"sign of life for {self.lease_s:.0f} s; it ends, and the steps that it saved are whole\n"
        )
        sys.stderr.flush()
        os._exit(LOST)


def _holder(value: bytes) -> tuple[str, str]:
    try:
        about = json.loads(value)
        return str(about["pid"]), str(about["host"])
    except (ValueError, LookupError, TypeError):
        return "?", "?"


def _is_dead(process: str, host: str) -> bool:
    """Known of processes of this machine alone."""
    if host != name_of_this_machine() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
