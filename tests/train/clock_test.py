"""Where the time goes, in a time that the test moves."""

import pytest

from sttts_jax.train.clock import Clock


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def spend(clock: Clock, time: Time, flops: float = 0.0) -> None:
    with clock.measure("data"):
        time.seconds += 1
    time.seconds += 3
    clock.tick(tokens=80, frames=8, flops=flops)


def test_time_is_split_and_rates_leave_saves_out() -> None:
    time = Time()
    clock = Clock(peak=20.0, now=time)
    spend(clock, time, flops=60.0)
    with clock.measure("save"):
        time.seconds += 5
    with clock.measure("compile"):
        time.seconds += 60
    spend(clock, time, flops=20.0)  # another bucket
    assert clock.report() == {
        "time/step_s": 3.0,
        "time/data_wait_s": 1.0,
        "time/data_wait_share": 0.25,
        "time/compile_s": 60.0,
        "time/save_s": 5.0,
        "time/eval_s": 0.0,
        "rate/tokens_per_s": 20.0,
        "rate/frames_per_s": 2.0,
        "rate/steps_per_s": 0.25,
        "rate/flops_per_s": 10.0,
        "rate/mfu": 0.5,
    }
    assert clock.report() == {}


def test_unknown_peak_reports_flops_only() -> None:
    time = Time()
    clock = Clock(now=time)
    spend(clock, time, flops=40.0)
    report = clock.report()
    assert report["rate/flops_per_s"] == 10.0 and "rate/mfu" not in report


def test_totals_survive_a_restart() -> None:
    time = Time()
    clock = Clock(now=time)
    spend(clock, time)
    clock.report()
    spend(clock, time)
    state = clock.state()
    assert state == {
        "step_s": 6.0, "data_s": 2.0, "compile_s": 0.0, "save_s": 0.0, "eval_s": 0.0,
        "tokens": 160.0, "frames": 16.0, "steps": 2.0, "flops": 0.0,
    }  # fmt: skip
    again = Clock(now=time)
    again.restore(state)
    spend(again, time)
    assert again.state()["step_s"] == 9.0 and again.state()["steps"] == 3


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="cannot measure 'lunch'"), Clock().measure("lunch"):
        pass
    with pytest.raises(ValueError, match="unknown keys"):
        Clock().restore({"minutes": 1})
