"""Where the time goes, of a window and of the whole run, whose totals survive restarts; rates, MFU and goodput.

Every second is of one kind. "step" is what a run is there for; its share of all is the goodput. What no block claims is
"start" until the first update, "step" after it. "restart" is the time from the checkpoint that a run goes on from to
the start of the process that does: lost updates, and nobody at work.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from sttts_jax.text_table import text_table

# What the kinds are called where people read them.
KINDS = {
    "step": "compute",
    "data": "input wait",
    "compile": "compile",
    "save": "checkpoint",
    "eval": "evaluation",
    "start": "start",
    "restore": "restore",
    "restart": "restart",
}


class Clock:
    """Measures a training run. All times in seconds of `now`; `wall` is the time of day, in seconds.

    clock = Clock()                                # when the process starts
    with clock.measure("restore"): state = ...
    clock.restore(totals)                          # those of the checkpoint, if there is one
    clock.begin()                                  # ahead of the first update
    with clock.measure("data"): batch = next(batches)
    ...
    clock.tick(tokens=..., frames=..., flops=...)  # once a step
    if log: metrics |= clock.report()              # rates since the last report

    peak: FLOP/s of all devices together, or None.
    """

    def __init__(
        self,
        peak: float | None = None,
        now: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ):
        self.peak = peak
        self._now, self._wall = now, wall
        counts = ("tokens", "frames", "steps", "flops")
        self._totals = dict.fromkeys((*(f"{kind}_s" for kind in KINDS), *counts), 0.0)
        self._window: dict[str, float] = dict.fromkeys(self._totals, 0.0)
        self._rest = "start"
        self._mark, self._born = now(), wall()

    def begin(self) -> None:
        """The updates begin."""
        self._claim(self._rest)
        self._rest = "step"

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Adds the time of the block to a kind. Raises ValueError on one that is not of KINDS, or that no block has."""
        measured = [name for name in KINDS if name not in ("step", "start", "restart")]
        if kind not in measured:
            raise ValueError(f"cannot measure {kind!r}; use one of {measured}")
        self._claim(self._rest)
        try:
            yield
        finally:
            self._claim(kind)

    def _claim(self, kind: str) -> None:
        now = self._now()
        self._window[f"{kind}_s"] += now - self._mark
        self._mark = now

    def tick(self, tokens: float, frames: float, flops: float = 0.0) -> None:
        """One step is done; tokens, frames and FLOPs (the analytic count) are of the global batch, all devices."""
        self._claim(self._rest)
        for key, value in (("tokens", tokens), ("frames", frames), ("steps", 1), ("flops", flops)):
            self._window[key] += value

    def report(self) -> dict[str, float]:
        """Rates since the last report, which begins a new window; {} when no step was made.

        step_s and data_wait_s are means of a step; rates count step + data time, not compilation, saves and evals. mfu
        only when both the FLOPs and the peak are known. goodput is of the whole run.
        """
        self._claim(self._rest)
        window, self._window = self._window, dict.fromkeys(self._totals, 0.0)
        for key, value in window.items():
            self._totals[key] += value
        steps, busy = window["steps"], max(window["step_s"] + window["data_s"], 1e-9)
        if not steps:
            return {}
        result = {
            "time/step_s": window["step_s"] / steps,
            "time/data_wait_s": window["data_s"] / steps,
            "time/data_wait_share": window["data_s"] / busy,
            **{f"time/{kind}_s": window[f"{kind}_s"] for kind in KINDS if kind not in ("step", "data")},
            "time/goodput": self.shares()["step"],
            "rate/tokens_per_s": window["tokens"] / busy,
            "rate/frames_per_s": window["frames"] / busy,
            "rate/steps_per_s": steps / busy,
        }
        if window["flops"]:
            result["rate/flops_per_s"] = window["flops"] / busy
            if self.peak:
                result["rate/mfu"] = result["rate/flops_per_s"] / self.peak
        return result

    def _seconds(self) -> dict[str, float]:
        """Since the first start of the run, by kind."""
        return {kind: self._totals[f"{kind}_s"] + self._window[f"{kind}_s"] for kind in KINDS}

    def shares(self) -> dict[str, float]:
        """Of the time since the first start of the run, by kind."""
        seconds = self._seconds()
        return {kind: part / max(sum(seconds.values()), 1e-9) for kind, part in seconds.items()}

    def summary(self) -> str:
        """A table of where the time since the first start of the run went."""
        self._claim(self._rest)
        shares, seconds = self.shares(), self._seconds()
        rows = [(KINDS[kind], f"{seconds[kind]:.1f}", f"{shares[kind]:.1%}") for kind in KINDS if seconds[kind]]
        rows.append(("all starts", f"{sum(seconds.values()):.1f}", f"goodput {shares['step']:.1%}"))
        return text_table(("time of the run", "seconds", "share"), rows)

    def state(self) -> dict[str, float]:
        """Totals since the first start of the run, for the checkpoint."""
        return {**{key: value + self._window[key] for key, value in self._totals.items()}, "saved_at": self._wall()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues the totals of a checkpoint; unknown keys are an error (ValueError). What was measured already is of
        this start.
        """
        totals = {key: float(value) for key, value in state.items() if key != "saved_at"}
        unknown = sorted(set(totals) - set(self._totals))
        if unknown:
            raise ValueError(f"the clock state has unknown keys {unknown}; it is from another version")
        self._totals.update(totals)
        # Clocks of two machines may differ by more than lies between.
        self._totals["restart_s"] += max(0.0, self._born - float(state.get("saved_at", self._born)))
