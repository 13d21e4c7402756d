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
    time.seconds += 7
    clock.begin()
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
        "time/start_s": 7.0,
        "time/restore_s": 0.0,
        "time/restart_s": 0.0,
        "time/goodput": 6 / 80,
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
    clock.begin()
    spend(clock, time, flops=40.0)
    report = clock.report()
    assert report["rate/flops_per_s"] == 10.0 and "rate/mfu" not in report


def test_totals_survive_a_restart() -> None:
    time = Time()
    clock = Clock(now=time, wall=lambda: 1000 + time.seconds)
    time.seconds += 2
    clock.begin()
    spend(clock, time)
    clock.report()
    spend(clock, time)
    state = clock.state()
    assert state == {
        "step_s": 6.0, "data_s": 2.0, "compile_s": 0.0, "save_s": 0.0, "eval_s": 0.0,
        "start_s": 2.0, "restore_s": 0.0, "restart_s": 0.0,
        "tokens": 160.0, "frames": 16.0, "steps": 2.0, "flops": 0.0, "saved_at": 1010.0,
    }  # fmt: skip
    spend(clock, time)  # lost
    time.seconds += 26  # and nobody there
    again = Clock(now=time, wall=lambda: 1000 + time.seconds)
    with again.measure("restore"):
        time.seconds += 4
    again.restore(state)
    time.seconds += 1
    again.begin()
    spend(again, time)
    after = again.state()
    assert {key: after[key] for key in ("step_s", "start_s", "restore_s", "restart_s", "steps")} == {
        "step_s": 9.0, "start_s": 3.0, "restore_s": 4.0, "restart_s": 30.0, "steps": 3,
    }  # fmt: skip
    lines = [line.split() for line in again.summary().splitlines()]
    assert ["compute", "9.0", "18.4%"] in lines and ["restart", "30.0", "61.2%"] in lines
    assert lines[-1] == ["all", "starts", "49.0", "goodput", "18.4%"]


def test_a_checkpoint_of_an_earlier_version_goes_on() -> None:
    time = Time()
    clock = Clock(now=time)
    clock.restore({"step_s": 6.0, "data_s": 2.0, "compile_s": 0.0, "save_s": 0.0, "eval_s": 0.0, "steps": 2.0})
    assert clock.state()["step_s"] == 6.0 and clock.state()["restart_s"] == 0.0


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="cannot measure 'lunch'"), Clock().measure("lunch"):
        pass
    with pytest.raises(ValueError, match="unknown keys"):
        Clock().restore({"minutes": 1})
