"""Evaluation during training: it changes nothing of the run, its numbers come again, and the best step is kept."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sttts_jax.train.loop as loop
from sttts_jax.api import evaluate
from sttts_jax.ckpt.files import list_steps
from sttts_jax.evals.while_training import evaluator
from sttts_jax.train.main import main
from sttts_jax.train.metric_lines import read_lines
from tests.tiny import tiny_config

TASK = "shapes_video_qa"
ACCURACY = f"eval/{TASK}/accuracy"
EVALUATION = {"evaluation__every": 2, "evaluation__tasks": (TASK,), "evaluation__limit": 6, "evaluation__batch": 8}
STEPS = 5


def _config(clips: Path, **settings: Any) -> Any:
    return tiny_config(clips, **({"total_steps": STEPS} | EVALUATION | settings))


def _train(config: Any, workdir: Path, out: Any = None) -> Any:
    """As `sttts_jax.api.train` does."""
    return main(config, workdir, evaluator=evaluator, out=out)


@pytest.fixture(name="whole", scope="module")
def _whole(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """(workdir, last state, console) of a run with evaluations."""
    workdir, out = tmp_path_factory.mktemp("whole"), io.StringIO()
    state = _train(_config(clips), workdir, out)
    return workdir, jax.device_get(state), out.getvalue()


def _lines(workdir: Path, key: str) -> dict[int, dict[str, Any]]:
    return {line["step"]: line for line in read_lines(workdir / "metrics.jsonl") if key in line}


def _numbers(workdir: Path) -> dict[int, dict[str, Any]]:
    """What a step computed; times, rates and how far the threads have read ahead are another matter."""
    free = ("time/", "rate/", "data/")
    return {n: {k: v for k, v in x.items() if not k.startswith(free)} for n, x in _lines(workdir, "loss").items()}


def test_metrics_go_to_the_file_and_the_console_in_order(whole: Any) -> None:
    workdir, _, console = whole
    found = _lines(workdir, ACCURACY)
    assert list(found) == [2, 4, STEPS]
    for line in found.values():
        assert 0 <= line[ACCURACY] <= 1 and line[f"eval/{TASK}/kept_share"] == 0.5
        assert line[f"eval/{TASK}/bad_questions"] == 0
    order = [(line["step"], ACCURACY in line) for line in read_lines(workdir / "metrics.jsonl") if "counts" not in line]
    assert order == [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True), (5, False), (5, True)]
    assert f"step 2/{STEPS}  {ACCURACY} " in console


def test_its_time_is_its_own(whole: Any) -> None:
    lines = _lines(whole[0], "time/eval_s")
    assert lines[3]["time/eval_s"] > 0 and lines[2]["time/eval_s"] == 0


def test_the_run_is_bit_equal_to_one_without(clips: Path, whole: Any, tmp_path: Path) -> None:
    workdir, state, _ = whole
    other = jax.device_get(_train(_config(clips, evaluation__every=0), tmp_path))
    jax.tree.map(np.testing.assert_array_equal, other.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, other.opt, state.opt)
    assert _numbers(tmp_path) == _numbers(workdir) and not _lines(tmp_path, ACCURACY)


def test_a_resumed_run_evaluates_the_same(clips: Path, whole: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """It ends in step 4, after the evaluation and the save of step 2."""
    real, calls = loop.to_device, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("the machine is gone")
        return real(*args)

    monkeypatch.setattr(loop, "to_device", dies)
    with pytest.raises(RuntimeError, match="gone"):
        _train(_config(clips), tmp_path)
    monkeypatch.setattr(loop, "to_device", real)
    _train(_config(clips), tmp_path)
    assert _lines(tmp_path, ACCURACY) == _lines(whole[0], ACCURACY)
    assert _numbers(tmp_path) == _numbers(whole[0])


def test_live_parameters_answer_as_the_saved_ones(whole: Any, tmp_path: Path) -> None:
    workdir, _, _ = whole
    (found,) = evaluate(workdir, TASK, limit=6, batch=8, out=tmp_path)
    assert found.results[0][0].overall.accuracy.value == _lines(workdir, ACCURACY)[STEPS][ACCURACY]


def test_the_best_step_is_kept(clips: Path, tmp_path: Path) -> None:
    """An evaluator of other people's, which likes step 2 most and never sees step 3."""
    seen = []

    def other(config: Any) -> Any:
        def ask(run: Any, step: int, params: Any) -> dict[str, float]:
            assert params["llm"]["blocks"]
            seen.append(step)
            return {ACCURACY: {1: 0.1, 2: 0.9, 4: 0.3, 5: 0.2}.get(step, 0.0)}

        return ask

    settings = {"checkpoint__every": 2, "checkpoint__keep": 1, "checkpoint__best_metric": ACCURACY}
    main(_config(clips, **settings), tmp_path, evaluator=other)
    assert seen == [2, 4, 5] and list_steps(tmp_path / "checkpoints") == [2, 5]


def test_mistakes_are_said_before_anything_starts(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no task 'shapes_video_q'; did you mean 'shapes_video_qa'"):
        _train(_config(clips, evaluation__tasks=("shapes_video_q",)), tmp_path / "run")
    with pytest.raises(ValueError, match="evaluation.every=2 needs an evaluator"):
        main(_config(clips), tmp_path / "run")
    assert not (tmp_path / "run").exists()
