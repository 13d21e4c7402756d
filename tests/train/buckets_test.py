"""One share a step: which, from which stream, compiled how often, and resumed how."""

import collections
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sttts_jax.train.loop as loop
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.pipeline import train_batches
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.train.buckets import Buckets, draw, open_streams
from sttts_jax.train.config import RunConfig
from sttts_jax.train.cost import update_flops
from sttts_jax.train.main import main as train
from sttts_jax.train.metric_lines import read_lines
from sttts_jax.train.run import first_state, prepare
from sttts_jax.train.tokenizer import run_tokenizer
from tests.tiny import tiny_config

SHARES = ("0", "0.5")
STEPS = 8


def _config(clips: Path, **settings: Any) -> Any:
    settings = {"pruning__fractions": SHARES, "data__packing_rows": 1, "total_steps": STEPS} | settings
    return tiny_config(clips, **settings)


@pytest.fixture(name="whole", scope="module")
def _whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """(workdir, last state, buckets) of a run that nothing interrupts."""
    workdir, config = tmp_path_factory.mktemp("whole"), _config(clips)
    checked = RunConfig.build(config)
    run = prepare(checked, config.to_dict(), Workdir(workdir), run_tokenizer(checked, Workdir(workdir)))
    state = loop.train(run, first_state(run))
    return workdir, jax.device_get(state), run.buckets.all


def _lines(workdir: Path) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in read_lines(workdir / "metrics.jsonl") if "loss" in line}


def test_the_draw_is_even_and_depends_on_seed_and_step_alone() -> None:
    drawn = [draw(0, step, 3) for step in range(1, 3001)]
    assert min(collections.Counter(drawn).values()) > 900
    assert drawn == [draw(0, step, 3) for step in range(1, 3001)]
    assert drawn != [draw(1, step, 3) for step in range(1, 3001)]
    assert [draw(0, step, 4) for step in range(1, 9)] == [1, 3, 1, 1, 2, 1, 2, 0]  # and will always be
    assert draw(-1, 5, 1) == 0


def test_each_step_removes_its_share_and_each_bucket_compiles_once(whole: Any) -> None:
    workdir, _, buckets = whole
    lines = _lines(workdir)
    drawn = [draw(0, step, 2) for step in range(1, STEPS + 1)]
    assert set(drawn) == {0, 1}
    for step, number in zip(range(1, STEPS + 1), drawn, strict=True):
        assert lines[step]["pruned_fraction"] == float(SHARES[number])
        assert lines[step]["kept/share"] == pytest.approx(1 - float(SHARES[number]), abs=1e-6)
        assert lines[step]["skipped"] == 0
    # One program of one shape each, and no step went past it.
    assert all(isinstance(bucket.compiled, jax.stages.Compiled) for bucket in buckets)
    assert [bucket.step._cache_size() for bucket in buckets] == [0, 0]


def test_rates_count_the_flops_of_each_step(clips: Path, whole: Any) -> None:
    _, _, buckets = whole
    run = RunConfig.build(_config(clips))
    assert [bucket.flops for bucket in buckets] == [update_flops(part) for part in run.buckets]
    assert buckets[0].flops > 1.1 * buckets[1].flops


def test_streams_do_not_repeat_each_other(clips: Path, tmp_path: Path) -> None:
    """Of the 24 clips of an epoch, one stream gets every other draw, the other the rest: here 8 rows of one each."""
    run = RunConfig.build(_config(clips))
    layout = DataLayout(make_mesh({"data": 1}, jax.devices()[:1]))
    streams = open_streams([part.data for part in run.buckets], run_tokenizer(run, Workdir(tmp_path)), layout)
    frames = [{row.tobytes() for row in next(stream)["frames"]} for stream in streams]
    assert len(frames[0] | frames[1]) == 16
    with pytest.raises(ValueError, match="part=2 must be from 0 to below parts=2"):
        train_batches(run.data, run_tokenizer(run, Workdir(tmp_path)), part=2, parts=2)


def test_a_resumed_run_is_the_uninterrupted_one(
    clips: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, state, _ = whole
    real, calls = loop.to_device, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise RuntimeError("the machine is gone")
        return real(*args)

    monkeypatch.setattr(loop, "to_device", dies)
    with pytest.raises(RuntimeError, match="gone"):
        train(_config(clips), str(tmp_path))
    monkeypatch.setattr(loop, "to_device", real)
    resumed = jax.device_get(train(_config(clips), str(tmp_path)))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.opt, state.opt)
    want, got = _lines(workdir), _lines(tmp_path)
    assert [(got[n]["loss"], got[n]["pruned_fraction"]) for n in want] == [
        (want[n]["loss"], want[n]["pruned_fraction"]) for n in want
    ]


def test_a_position_of_other_shares_is_refused(whole: Any) -> None:
    _, _, buckets = whole
    both = Buckets(buckets, 0)
    state = both.get_state()
    assert sorted(state["streams"]) == ["0", "0.5"]
    both.set_state(state)
    with pytest.raises(ValueError, match=r"of the shares \['0'\] and this run's are \['0', '0.5'\]"):
        both.set_state({"streams": {"0": state["streams"]["0"]}})


def test_parameters_are_the_same_for_every_share(clips: Path) -> None:
    """The checkpoint of such a run is one of a run that always removes the same."""
    alone, many = (RunConfig.build(tiny_config(clips, **{"pruning__fractions": f})) for f in ((), SHARES))
    shapes = [
        jax.tree.map(lambda x: x.shape, _abstract(run)) for part in (alone, many) for run in (part, *part.buckets)
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert alone.data.row_shape == many.data.row_shape


def _abstract(run: RunConfig) -> Any:
    from sttts_jax.train.state import boxed_state, build_model

    shape = run.data.row_shape
    return boxed_state(run.optimizer, run.total_steps, build_model(run.model, run.pruning, shape), shape)[0].params
