"""What to change where a step does not fit: the cheapest first, and only what should be enough."""

from sttts_jax.plan.advice import GIB, Setting, what_to_change
from sttts_jax.plan.memory import Memory
from sttts_jax.train.config import RunConfig, defaults

KEPT = {"none": 40 * GIB, "dots": 30 * GIB, "attention": 12 * GIB, "full": 8 * GIB}


def _setting(data: int = 1, rows: int = 64, remat: str = "none") -> Setting:
    config = defaults()
    config.data.rows, config.model.remat = rows, remat
    mesh = {"data": data, "fsdp": 16, "tensor": 1, "sequence": 1}
    return Setting(RunConfig.build(config), mesh, KEPT.__getitem__)


def _memory(state: int = 6, activations: int = 40) -> Memory:
    parts = (state // 3, 2 * state // 3, 1, activations, 9, 0)
    return Memory(*(part * GIB for part in parts))


def test_the_cheapest_comes_first_and_the_training_is_changed_last() -> None:
    lines = what_to_change(_setting(), _memory(), 32 * GIB)
    assert lines[:2] == ["set model.remat=attention: about 28.0 GiB", "set model.remat=full: about 24.0 GiB"]
    assert "loss.accumulate=4: about 21" in lines[2] and "data.frames_per_row" in lines[-1]


def test_parameters_go_over_more_devices_before_rows_are_cut() -> None:
    lines = what_to_change(_setting(data=4, remat="full"), _memory(48, 8), 32 * GIB)
    assert lines[0].startswith("set mesh.data=1 and mesh.fsdp=64: about 30")
    assert not any("remat" in line for line in lines)


def test_no_single_change_is_enough() -> None:
    (line, _) = what_to_change(_setting(rows=16), _memory(), 20 * GIB)
    assert line.startswith("no single change is enough; set together model.remat=dots and")
    (line,) = what_to_change(_setting(), _memory(60), 16 * GIB)
    assert line == "parameters and moments alone take 60.0 GiB: take 8 x as many devices as fsdp"
