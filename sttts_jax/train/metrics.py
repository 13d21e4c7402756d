"""Where numbers go: metrics.jsonl, which reports read, TensorBoard and the console, all of them one step late."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from absl import logging

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import PathLike
from sttts_jax.train.console import ConsoleLog
from sttts_jax.train.metric_lines import JsonLines
from sttts_jax.train.tensorboard import TensorBoard


class Late:
    """Hands metrics out one step late: those of step n are fetched only after step n + 1 was dispatched.

    So the device always has work queued while the host waits for numbers.
    """

    def __init__(self) -> None:
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Keeps a step's device arrays (any tree); returns (step, host tree) of the one before."""
        previous, self._held = self._held, (step, metrics)
        return None if previous is None else (previous[0], jax.device_get(previous[1]))

    def flush(self) -> tuple[int, Any] | None:
        """(step, host tree) of what is still held: after the last step, and before an evaluation."""
        previous, self._held = self._held, None
        return None if previous is None else (previous[0], jax.device_get(previous[1]))


class UnwritableMetrics(ValueError):
    """The numbers of a run cannot be written: a full disk, no permission."""


class MetricWriter:
    """All writers of a run. In other processes than the first everything is a no-op.

    console_keys: the metrics that the console shows, in that order. resume_step: the step of the restored checkpoint.
    Raises UnwritableMetrics wherever the disk does not take what is written; but where it is `patient` only as it
    begins: what is not taken later is lost, and said.
    """

    def __init__(
        self,
        workdir: PathLike,
        *,
        total_steps: int,
        resume_step: int = 0,
        console_keys: tuple[str, ...] = ("loss",),
        tensorboard: bool = True,
        patient: bool = False,
        out: TextIO | None = None,
    ):
        self._lines: JsonLines | None = None
        self._board: TensorBoard | None = None
        self._console: ConsoleLog | None = None
        self._keys, self._place = console_keys, Workdir(workdir)
        self._patient = self._told = False
        if jax.process_index() != 0:
            return
        with self._writing():
            self._place.root.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(self._place.metrics, resume_step)
            self._board = TensorBoard(self._place.tensorboard, resume_step) if tensorboard else None
        self._console = ConsoleLog(total_steps, resume_step, out)
        self._patient = patient
        if self._lines.damaged:
            self.note(f"{self._place.metrics}: dropped {self._lines.damaged} damaged or cut lines")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"the metrics in {self._place.root} cannot be written ({error.strerror or error})"
            if not self._patient:
                raise UnwritableMetrics(
                    f"{problem}; see to space and permissions there, then give the same command again"
                ) from error
            self._go_on(problem)

    def _go_on(self, problem: str) -> None:
        """The record of an event file may be cut, after which no viewer reads on: it ends."""
        self._board = None
        if not self._told:
            self.note(f"{problem}; those of these steps are lost, and event files end here, while training goes on")
        self._told = True

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars of a step to all writers. Raises ValueError that names a value which is not a scalar.

        The console shows those of `console_keys`; where a record has none of them, all.
        """
        if self._lines is None or self._console is None:
            return
        bad = [name for name, value in values.items() if np.ndim(value) != 0]
        if bad:
            raise ValueError(f"the metrics {bad} are not scalars; use histogram() for arrays")
        scalars = {name: float(value) for name, value in values.items()}
        with self._writing():
            self._lines.write({"step": int(step), **scalars})
            if self._board is not None:
                self._board.scalars(step, scalars)
        self._console.report(step, {name: scalars[name] for name in self._keys if name in scalars} or scalars)

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        """counts [n] and edges [n + 1], counted on the device; a line of its own in metrics.jsonl."""
        if self._lines is None:
            return
        with self._writing():
            self._lines.write({"step": int(step), "histogram": name, "counts": counts, "edges": edges})
            if self._board is not None:
                self._board.histogram(step, name, counts, edges)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3], to TensorBoard."""
        with self._writing():
            if self._board is not None:
                self._board.image(step, name, pixels)

    def note(self, text: str) -> None:
        """Lines on the console, and in the log of the process."""
        logging.info("%s", text)
        if self._console is not None:
            self._console.note(text)

    def flush(self) -> None:
        """Makes what was written durable: before the checkpoint of its step is."""
        with self._writing():
            if self._lines is not None:
                self._lines.flush()
            if self._board is not None:
                self._board.flush()

    def close(self) -> None:
        """Closes all writers, the console first: it says nothing more, and a full disk must not leave a bar behind."""
        with self._writing(), contextlib.ExitStack() as stack:
            closes = [writer.close for writer in (self._lines, self._board, self._console) if writer is not None]
            for close in closes:
                stack.callback(close)
