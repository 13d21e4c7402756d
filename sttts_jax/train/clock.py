"""Where the time goes: step, data wait, compile, save, eval; rates and MFU over a window; totals survive restarts."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

KINDS = ("step", "data", "compile", "save", "eval")


class Clock:
    """Measures a training loop. All times in seconds of `now`.

    with clock.measure("data"): batch = next(batches)
    ...
    clock.tick(tokens=..., frames=..., flops=...)     # once a step
    if log: metrics |= clock.report()      # rates since the last report

    peak: FLOP/s of all devices together, or None.
    """

    def __init__(self, peak: float | None = None, now: Callable[[], float] = time.perf_counter):
        self._peak, self._now = peak, now
        self._totals = {
            **dict.fromkeys((f"{kind}_s" for kind in KINDS), 0.0),
            "tokens": 0.0,
            "frames": 0.0,
            "steps": 0.0,
            "flops": 0.0,
        }
        self._window: dict[str, float] = dict.fromkeys(self._totals, 0.0)
        self._mark = now()

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Adds the time of the block to data, compile, save or eval; what no block claims is step time.

        Raises ValueError on another kind.
        """
        if kind not in KINDS[1:]:
            raise ValueError(f"cannot measure {kind!r}; use one of {list(KINDS[1:])}")
        self._claim("step")
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
        self._claim("step")
        for key, value in (("tokens", tokens), ("frames", frames), ("steps", 1), ("flops", flops)):
            self._window[key] += value

    def report(self) -> dict[str, float]:
        """Rates since the last report, which begins a new window; {} when no step was made.

        step_s and data_wait_s are means of a step; rates count step + data time, not compilation, saves and evals. mfu
        only when both the FLOPs and the peak are known.
        """
        self._claim("step")
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
            "time/compile_s": window["compile_s"],
            "time/save_s": window["save_s"],
            "time/eval_s": window["eval_s"],
            "rate/tokens_per_s": window["tokens"] / busy,
            "rate/frames_per_s": window["frames"] / busy,
            "rate/steps_per_s": steps / busy,
        }
        if window["flops"]:
            result["rate/flops_per_s"] = window["flops"] / busy
            if self._peak:
                result["rate/mfu"] = result["rate/flops_per_s"] / self._peak
        return result

    def state(self) -> dict[str, float]:
        """Totals since the first start of the run, for the checkpoint."""
        return {key: value + self._window[key] for key, value in self._totals.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues the totals of a checkpoint; unknown keys are an error (ValueError)."""
        unknown = sorted(set(state) - set(self._totals))
        if unknown:
            raise ValueError(f"the clock state has unknown keys {unknown}; it is from another version")
        self._totals.update({key: float(value) for key, value in state.items()})
        self._window = dict.fromkeys(self._totals, 0.0)
        self._mark = self._now()
