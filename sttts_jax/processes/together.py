"""Several processes that end together: signs of life, last words, and where to stop, through JAX's own coordinator.

Every process has a thread that shows life there, looks whether another one has ended the run, and whether one was told
to stop. The first process looks at the signs of life of all. So no further port is needed, and a process that waits in
a collective, for data or for the compiler ends with the others.

Where to stop is agreed upon by points that all processes pass in the same order: those that pass one alone would wait
for the others for ever. Whoever hears that the run is to stop says which point it passed last; all stop at the first
one that none has passed.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import jax

from sttts_jax.exit_codes import HANG
from sttts_jax.processes.pulse import EVERY_S, Pulse

_ROOT = "sttts"
_LAST_WORDS_S = 5.0  # that the first process waits for the others to have heard why the run ends
_AGREE_S = 0.1  # from one look to the next while the run is to stop
_DONE = "done"
_ALL = 2**62  # points


class Together:
    """Of one process. `end` is called from a thread when the run is to end: it does not return."""

    def __init__(self, client: Any, process: int, processes: int, heartbeat_s: float, pulse: Pulse | None):
        self._client, self.process, self.processes = client, process, processes
        self.heartbeat_s, self._pulse = heartbeat_s, pulse
        self._name = f"process {process} of {processes} on {socket.gethostname()}"
        self._lock = threading.Lock()
        self._passed, self._stopping = -1, False
        self._wants_stop, self._closed = threading.Event(), threading.Event()
        self._target: int | None = None
        self._agreed = threading.Event()
        self._answered = time.monotonic()
        self._lives: dict[int, tuple[str, float]] = {}  # of every process, seen by the first one
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="together", daemon=True)

    def start(self) -> "Together":
        """Begins to show life and to look."""
        self._thread.start()
        threading.Thread(target=self._look_at_coordinator, name="coordinator", daemon=True).start()
        return self

    # Ending.

    def tell(self, code: int, sentence: str) -> None:
        """Last words of this process: all others end with this code and this sentence. Waits until they can have heard
        it, a few seconds at most.
        """
        self._closed.set()  # what it says itself is not news
        said = threading.Thread(target=self._tell, args=(code, f"{self._name}: {sentence}"), daemon=True)
        said.start()
        said.join(_LAST_WORDS_S)
        if self._pulse is not None:
            self._pulse.spoken()

    def await_end(self) -> None:
        """Gives another process, of which an error here may be the consequence, the time to be found out: then the
        whole process ends meanwhile, with a sentence about that one.
        """
        time.sleep(self.heartbeat_s + 4 * EVERY_S)

    def close(self) -> None:
        """The run is done on this process: it is missed no more, and holds up nobody who is told to stop."""
        self._closed.set()
        self._thread.join(_LAST_WORDS_S)  # what it says would be the last word
        self._set(f"alive/{self.process}", _DONE)
        if not self._stopping:
            self._set(f"passed/{self.process}", str(_ALL))

    def _tell(self, code: int, text: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was first, or the coordinator is gone
            self._client.key_value_set(f"{_ROOT}/say/end", json.dumps([code, text]))
        self._set(f"heard/{self.process}", "1")
        if self.process == 0:
            self._await_all_heard()

    def _await_all_heard(self) -> None:
        """The coordinator lives in this process; what it holds goes with it."""
        until = time.monotonic() + _LAST_WORDS_S - 1
        while time.monotonic() < until and len(self._get("heard/")) < self.processes:
            time.sleep(EVERY_S / 5)

    def _end(self, code: int, text: str) -> None:
        """Of the whole process, with what another one said, or with what was found out about it."""
        self._ending.acquire()  # never given back: the first reason is the one that is said
        with contextlib.suppress(OSError):  # of a supervisor that is gone
            print(f"sttts-jax: error: the run ends with {text}", file=sys.stderr, flush=True)
        if self._pulse is not None:
            self._pulse.spoken()
        self._tell(code, text)
        os._exit(code)

    def lost_supervisor(self, sentence: str) -> None:
        """This process ends, because what watches over it is gone."""
        self._end(HANG, f"{self._name}: {sentence}")

    # The thread.

    def _live(self) -> None:
        count, usual = 0, min(EVERY_S, self.heartbeat_s / 5)
        while not self._closed.wait(_AGREE_S if self._wants_stop.is_set() or self._stopping else usual):
            count += 1
            try:
                self._round(count)
                self._answered = time.monotonic()
            except jax.errors.JaxRuntimeError:  # the coordinator does not answer, see _look_at_coordinator
                continue

    def _round(self, count: int) -> None:
        self._client.key_value_set(f"{_ROOT}/alive/{self.process}", str(count), allow_overwrite=True)
        said = self._get("say/")
        if "end" in said:
            self._end(*json.loads(said["end"]))
        if self._wants_stop.is_set() and "stop" not in said:
            self._set("say/stop", "1")
        if "stop" in said and self._target is None:
            self._agree()
        if self.process == 0:
            self._look_at_all()

    def _look_at_all(self) -> None:
        now, lives = time.monotonic(), self._get("alive/")
        for process in range(self.processes):
            life = lives.get(str(process), "")
            if self._lives.get(process, ("-", 0.0))[0] != life:
                self._lives[process] = (life, now)
            silent = now - self._lives[process][1] > self.heartbeat_s
            if silent and life != _DONE and process != self.process:
                self._end(
                    HANG,
                    f"process {process} of {self.processes}: it showed no life for {self.heartbeat_s:g} s "
                    "(distributed.heartbeat_s)",
                )

    def _look_at_coordinator(self) -> None:
        while not self._closed.wait(EVERY_S):
            if time.monotonic() - self._answered > self.heartbeat_s + 2 * EVERY_S:
                self._end(
                    HANG,
                    f"process 0 of {self.processes}, where the coordinator is: it did not answer {self._name} for "
                    f"{self.heartbeat_s:g} s (distributed.heartbeat_s)",
                )

    def _get(self, folder: str) -> dict[str, str]:
        found = self._client.key_value_dir_get(f"{_ROOT}/{folder}")
        return {key.rpartition("/")[2]: value for key, value in found}

    def _set(self, key: str, value: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator is gone: nobody is there to be told
            self._client.key_value_set(f"{_ROOT}/{key}", value, allow_overwrite=True)

    # Stopping at one point.

    def ask_to_stop(self) -> None:
        """All processes shall stop. May be called from a handler of signals."""
        self._wants_stop.set()

    def stops_at(self, point: int) -> bool:
        """Whether the run stops at this point, or did before; False while nobody knows. Does not pass it."""
        return self._target is not None and point >= self._target

    def passes(self, point: int) -> bool:
        """Passes a point, after all before it; False where the run stops there. Waits only where it is to stop."""
        with self._lock:
            if not self._stopping:
                self._passed = point
                return True
        self._agreed.wait()
        return not self.stops_at(point)

    def _agree(self) -> None:
        with self._lock:
            first, self._stopping = not self._stopping, True
        if first:
            self._set(f"passed/{self.process}", str(self._passed))
        passed = self._get("passed/")
        if len(passed) == self.processes:
            self._target = max(map(int, passed.values())) + 1
            self._agreed.set()


_of_this_process: Together | None = None


def together() -> Together | None:
    """That of this process; None where the run has no other one."""
    return _of_this_process


def begin(process: int, processes: int, heartbeat_s: float, pulse: Pulse | None) -> Together:
    """After JAX has joined the processes."""
    global _of_this_process
    from jax._src import distributed  # the only way to the client of the coordinator

    client = distributed.global_state.client
    _of_this_process = Together(client, process, processes, heartbeat_s, pulse).start()
    return _of_this_process
