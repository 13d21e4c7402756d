"""Where numbers go: metrics.jsonl, TensorBoard and the console, all of them one step late.

metrics.jsonl is the record that reports read: one JSON object a line with `step`, in ascending order across restarts.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import PathLike, as_path, is_local, write_text


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


class JsonLines:
    """metrics.jsonl, appended line by line. Opening it at `resume_step` n drops the lines after step n, in one rename.

    A line cut by a kill is dropped too. On gs://, where nothing can be appended, the whole file is written at `flush`.
    """

    def __init__(self, path: PathLike, resume_step: int = 0):
        self._path = as_path(path)
        self._lines = self._kept(resume_step)
        write_text(self._path, "".join(self._lines))
        self._file = open(os.fspath(self._path), "a", encoding="utf-8") if is_local(self._path) else None  # noqa: SIM115

    def _kept(self, resume_step: int) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines()
        return [f"{line}\n" for line in lines if _step_of(line) <= resume_step]

    def write(self, record: Mapping[str, Any]) -> None:
        """One line. NaN and infinities become strings, as JSON has none. Raises ValueError without a step."""
        if "step" not in record:
            raise ValueError(f"a metrics line needs a step, got the keys {sorted(record)}")
        line = json.dumps(_jsonable(dict(record))) + "\n"
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line)
            self._file.flush()

    def flush(self) -> None:
        """Makes the lines durable."""
        if self._file is None:
            write_text(self._path, "".join(self._lines))
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._file is not None:
            self._file.close()


def _step_of(line: str) -> float:
    """Infinity for what is no whole record."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_lines(path: PathLike) -> list[dict[str, Any]]:
    """All whole records of a metrics.jsonl; NaN and infinities are floats again."""
    records = []
    for line in as_path(path).read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records.append({key: float(v) if v in ("NaN", "Infinity", "-Infinity") else v for key, v in record.items()})
    return records


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return _jsonable(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [_jsonable(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


class TensorBoard:
    """Event files without TensorFlow. The viewer hides what an earlier start wrote after `resume_step`."""

    def __init__(self, directory: PathLike, resume_step: int = 0):
        from tensorboardX import SummaryWriter  # slow to import, and only the first process needs it

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(os.fspath(as_path(directory)), purge_step=purge)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def histogram(self, step: int, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """A histogram already counted on the device: counts [n], edges [n + 1]."""
        counts, edges = np.asarray(counts, np.float64), np.asarray(edges, np.float64)
        middle = (edges[:-1] + edges[1:]) / 2
        self._writer.add_histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=float(counts.sum()),
            sum=float((counts * middle).sum()),
            sum_squares=float((counts * middle**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3]."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class ConsoleLog:
    """A progress bar on a terminal; elsewhere one plain line a report, which logs and pipes keep readable."""

    def __init__(self, total_steps: int, first_step: int = 0, out: TextIO | None = None):
        self._out, self._total = out or sys.stdout, total_steps
        self._progress: Progress | None = None
        console = Console(file=self._out)
        if console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console)
            self._task = self._progress.add_task("train", total=total_steps, completed=first_step, numbers="")
            self._progress.start()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a few numbers of a step."""
        numbers = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._progress is None:
            print(f"step {step}/{self._total}  {numbers}", file=self._out, flush=True)
        else:
            self._progress.update(self._task, completed=step, numbers=numbers)

    def note(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._progress is None:
            print(text, file=self._out, flush=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.stop()


def _short(value: float) -> str:
    value = float(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class MetricWriter:
    """All writers of a run. In other processes than the first everything is a no-op.

    console_keys: the metrics that the console shows, in that order. resume_step: the step of the restored checkpoint.
    """

    def __init__(
        self,
        workdir: PathLike,
        *,
        total_steps: int,
        resume_step: int = 0,
        console_keys: tuple[str, ...] = ("loss",),
        tensorboard: bool = True,
        out: TextIO | None = None,
    ):
        self._lines: JsonLines | None = None
        self._board: TensorBoard | None = None
        self._console: ConsoleLog | None = None
        self._keys = console_keys
        if jax.process_index() != 0:
            return
        place = Workdir(workdir)
        place.root.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(place.metrics, resume_step)
        self._board = TensorBoard(place.tensorboard, resume_step) if tensorboard else None
        self._console = ConsoleLog(total_steps, resume_step, out)

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
        self._lines.write({"step": int(step), **scalars})
        if self._board is not None:
            self._board.scalars(step, scalars)
        self._console.report(step, {name: scalars[name] for name in self._keys if name in scalars} or scalars)

    def histogram(self, step: int, name: str, counts: Any, edges: Any) -> None:
        """counts [n] and edges [n + 1], counted on the device; a line of its own in metrics.jsonl."""
        if self._lines is None:
            return
        self._lines.write({"step": int(step), "histogram": name, "counts": counts, "edges": edges})
        if self._board is not None:
            self._board.histogram(step, name, counts, edges)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """uint8 [height, width, 3], to TensorBoard."""
        if self._board is not None:
            self._board.image(step, name, pixels)

    def note(self, text: str) -> None:
        """A line on the console."""
        if self._console is not None:
            self._console.note(text)

    def close(self) -> None:
        """Closes all writers."""
        for writer in (self._lines, self._board, self._console):
            if writer is not None:
                writer.close()
