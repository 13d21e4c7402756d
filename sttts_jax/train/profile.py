"""A profiler trace of a window of steps, chosen by config."""

from dataclasses import dataclass
from typing import Any, Self

import jax

from sttts_jax.paths import PathLike, as_path


@dataclass(frozen=True)
class ProfileConfig:
    """A profiler trace of some steps, in WORKDIR/profile.

    first           step to begin with, 1 is the first of the run; it should lie past 2, or the trace shows compilation
    steps           steps to trace, 0 for none
    """

    first: int = 10
    steps: int = 0

    def check(self) -> Self:
        """Itself. Raises ValueError on a window that cannot be."""
        if self.first < 1 or self.steps < 0:
            raise ValueError(f"profile.first={self.first} must be at least 1 and profile.steps={self.steps} at least 0")
        return self


class ProfileWindow:
    """Call `before(step)` ahead of every step and `close()` at the end; TensorBoard reads DIR/plugins/profile."""

    def __init__(self, config: ProfileConfig, directory: PathLike):
        config.check()
        self._config, self._directory, self._running = config, as_path(directory), False

    def before(self, step: int, last: Any = None) -> None:
        """Starts the trace at the first step of the window, ends it after the last; none in a run resumed past `first`.

        `last`: arrays of the step before, waited for when the trace ends.
        """
        if self._running and step >= self._config.first + self._config.steps:
            self.close(last)
        elif self._config.steps and step == self._config.first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def close(self, last: Any = None) -> None:
        """Ends a running trace; waits for `last` (arrays of the last step), so that it is whole."""
        if self._running:
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            self._running = False
