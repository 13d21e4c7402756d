"""What a run says while it goes on: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable, Mapping
from typing import TextIO

from absl import logging
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


class _Bar(Progress):
    """The bar on a line of its own, the numbers below it: a terminal of 80 columns holds both."""

    numbers: tuple[str, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.numbers:
            yield Columns(map(Text, self.numbers), padding=(0, 2))


class ConsoleLog:
    """A progress bar on a terminal; elsewhere one plain line a report, which logs and pipes keep readable.

    A run goes on without a console: a terminal that is closed, or a pipe that nobody reads, ends what is said alone.
    """

    def __init__(self, total_steps: int, first_step: int = 0, out: TextIO | None = None):
        self._out, self._total = out or sys.stdout, total_steps
        self._bar: _Bar | None = None
        self._deaf = False
        console = Console(file=self._out)
        if console.is_terminal:
            columns = (
                TextColumn("train"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = _Bar(*columns, console=console, expand=True)
            self._task = self._bar.add_task("train", total=total_steps, completed=first_step)
            self._bar.start()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a few numbers of a step."""
        numbers = tuple(f"{name} {_short(value)}" for name, value in values.items())
        if self._bar is None:
            self._print(f"step {step}/{self._total}  {'  '.join(numbers)}")
        else:
            self._bar.numbers = numbers
            self._bar.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        self._print(text)

    def _print(self, text: str) -> None:
        if self._deaf:
            return
        try:
            if self._bar is None:
                print(text, file=self._out, flush=True)
            else:
                self._bar.console.print(text, markup=False, highlight=False)
        except OSError as error:
            self._deaf = True
            logging.warning("the console cannot be written (%s); the run goes on without it", error.strerror)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is None:
            return
        try:
            self._bar.stop()
        except OSError:  # the terminal is gone
            self._deaf = True


def _short(value: float) -> str:
    value = float(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
