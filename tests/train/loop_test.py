"""The loop, with the real data, model and checkpoints: resume after kill -9, NaN steps, refusals."""

import contextlib
import functools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sttts_jax.train.loop as loop
from sttts_jax.ckpt.files import has_digests, list_steps
from sttts_jax.ckpt.meta import ConfigMismatch
from sttts_jax.ckpt.restore import load_params
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.mesh import make_mesh
from sttts_jax.train.config import RunConfig
from sttts_jax.train.main import main as train
from sttts_jax.train.metric_lines import read_lines
from sttts_jax.train.run import first_state, prepare
from sttts_jax.train.state import blueprint, build_model, fresh_state
from sttts_jax.train.step import train_step
from sttts_jax.train.tokenizer import run_tokenizer
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
STEPS = 8


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    state = train(tiny_config(clips), str(workdir))
    return workdir, jax.device_get(state)


def _losses(workdir) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(workdir / "metrics.jsonl") if "loss" in line}


def test_a_run_learns_and_logs_what_it_should(whole):
    workdir, state = whole
    lines = read_lines(workdir / "metrics.jsonl")
    last = [line for line in lines if "loss" in line][-1]
    wanted = {
        "loss", "loss_task", "loss_aux", "loss_z", "scores/saturated", "accuracy_tokens",
        "kept/share", "kept/later_mean", "fill/tokens",
        "grad_norm/scorer", "lr/llm", "lr/scorer", "time/data_wait_s", "rate/tokens_per_s", "rate/frames_per_s",
        "rate/flops_per_s", "skipped", "pruned_fraction", "data/bad_records",
    }  # fmt: skip
    assert wanted <= set(last)
    assert last["kept/share"] == 0.5 and last["skipped"] == 0
    losses = _losses(workdir)
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1]
    assert int(state.step) == STEPS


@pytest.mark.slow
def test_kill_9_at_any_step_resumes_bit_equal(clips, whole, tmp_path):
    """A process is killed without warning, twice; the same command goes on, with the uninterrupted loss curve."""
    command = [sys.executable, "-m", "tests.tiny", str(clips), str(tmp_path), str(STEPS)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for kill_at in (3, 6):
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in process.stdout:
            if line.startswith(f"step {kill_at}/"):
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    workdir, _ = whole
    assert _losses(tmp_path) == _losses(workdir)


def test_a_start_shows_what_is_trained_and_where_it_lies(clips, tmp_path, capsys):
    settings = {"optimizer__warmup": 0, "optimizer__train_only": ("vit/.*",)}
    train(tiny_config(clips, total_steps=1, log__tensorboard=True, **settings), tmp_path)
    table = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert table["scorer"][3] == table["scorer"][2] != "0" and table["llm"][3] == "0"  # trained, of all
    leaves = (tmp_path / "state.txt").read_text().splitlines()
    assert any(line.startswith("params/vit/scorer/fc1/kernel ") for line in leaves)
    assert leaves[-1].startswith("total on one device")
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"first_batch/k_0.5" in events and b"PNG" in events


def test_a_step_that_moves_data_by_itself_is_an_error(clips, tmp_path):
    config, place = tiny_config(clips), Workdir(tmp_path)
    checked = RunConfig.build(config)
    run = prepare(checked, config.to_dict(), place, run_tokenizer(checked, place))
    (bucket,), reached = run.buckets.all, []
    real = bucket.step

    def leaky(state, batch):
        reached.append(int(jax.device_get(state.step)))
        return real(state, {**batch, "weights": np.asarray(batch["weights"])})

    bucket.step = types.SimpleNamespace(lower=lambda *_: types.SimpleNamespace(compile=lambda: leaky))
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        loop.train(run, first_state(run))
    assert reached == [0, 1]  # the first step, which is compiled, may


def test_a_finished_run_started_again_does_nothing(clips, whole):
    workdir, state = whole
    before = _losses(workdir)
    again = jax.device_get(train(tiny_config(clips), str(workdir)))
    assert int(again.step) == STEPS and _losses(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)


def test_another_config_on_an_old_workdir_is_refused_with_a_diff(clips, whole):
    workdir, _ = whole
    with pytest.raises(ConfigMismatch, match=r"(?s)pruning.fraction.*0\.5.*0\.3"):
        train(tiny_config(clips, pruning__fraction="0.3"), str(workdir))


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(clips, whole, tmp_path, caplog):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    biggest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)
    train(tiny_config(clips), str(workdir))
    assert f"step {newest.name}" in caplog.text and "broken" in caplog.text
    assert _losses(workdir) == _losses(whole[0])


def test_a_nan_step_is_skipped_counted_and_ends_the_run_in_a_row(clips, tmp_path, monkeypatch, capsys):
    real = loop.to_device

    def poisoned(batch, sharding, rows):
        poisoned.calls += 1
        if poisoned.calls in (2, 4, 5, 6):
            batch = {**batch, "weights": np.where(batch["weights"] > 0, np.float32(np.nan), batch["weights"])}
        return real(batch, sharding, rows)

    poisoned.calls = 0
    monkeypatch.setattr(loop, "to_device", poisoned)
    with pytest.raises(loop.TooManySkipped, match="3 updates in a row"):
        train(tiny_config(clips, loss__max_skipped=3, checkpoint__every=100), str(tmp_path))
    lines = {line["step"]: line for line in read_lines(tmp_path / "metrics.jsonl") if "loss" in line}
    assert lines[3]["skipped"] == 1 and lines[3]["skipped_in_row"] == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "update skipped" in line]
    held = [line.partition("; its rows hold ")[2].partition("(train), record ")[2].split(", ") for line in said]
    assert [len(records) for records in held] == [8] * 4 and all(int(record) < 24 for record in held[0])
    monkeypatch.setattr(loop, "to_device", real)
    resumed = train(tiny_config(clips, loss__max_skipped=3, checkpoint__every=100), str(tmp_path))
    assert int(resumed.step) == STEPS
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(resumed.params)))


def test_an_abort_never_takes_the_place_of_a_good_step(clips, tmp_path, monkeypatch):
    """Started again and again, with every step saved and one kept: the good one stays, and the rest lies apart."""
    real = loop.to_device

    def poisoned(batch, sharding, rows):
        poisoned.calls += 1
        if poisoned.calls > 2:
            batch = {**batch, "weights": np.where(batch["weights"] > 0, np.float32(np.nan), batch["weights"])}
        return real(batch, sharding, rows)

    monkeypatch.setattr(loop, "to_device", poisoned)
    config = tiny_config(clips, loss__max_skipped=2, checkpoint__every=1, checkpoint__keep=1)
    for calls in (0, 2):  # the second start comes from step 2
        poisoned.calls = calls
        with pytest.raises(loop.TooManySkipped, match=r"kept in .*/aborted/4, .* the same command goes on from step 2"):
            train(config, tmp_path)
        assert list_steps(tmp_path / "checkpoints") == [2]
    kept, good = (load_params(whole_step(place)) for place in (tmp_path / "aborted" / "4", tmp_path))
    jax.tree.map(np.testing.assert_array_equal, kept, good)  # no later update was made
    assert list_steps(tmp_path / "aborted") == [4] and has_digests(Workdir(tmp_path).aborted / "4")


def test_whatever_ends_a_run_what_it_trained_is_saved_first(clips, tmp_path):
    """With the data position and the metrics of that step; such as memory that an evaluation asks for in vain."""

    def evaluator(config):
        def ask(run, step, params):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

        return ask

    tasks = {"evaluation__every": 3, "evaluation__tasks": ("shapes_video_qa",), "checkpoint__every": 100}
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tiny_config(clips, **tasks), tmp_path, evaluator=evaluator)
    assert list_steps(tmp_path / "checkpoints") == [3] and sorted(_losses(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_run_that_waits_for_data_hears_a_signal(clips, whole, tmp_path, number, monkeypatch):
    """The step before is saved, with the data position that belongs to it."""
    config, place = tiny_config(clips, checkpoint__every=100), Workdir(tmp_path)
    checked = RunConfig.build(config)
    run = prepare(checked, config.to_dict(), place, run_tokenizer(checked, place))
    (bucket,), real = run.buckets.all, run.buckets.all[0].batches.__class__.__next__

    class Stuck(bucket.batches.__class__):
        def __next__(self):
            if self.count < 3:
                return real(self)
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
            real(self)  # taken, but never trained on
            queue.SimpleQueue().get()

    bucket.batches.__class__ = Stuck
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # also where a job in the background ignores it
    with contextlib.suppress(KeyboardInterrupt) if number == signal.SIGINT else contextlib.nullcontext():
        loop.train(run, first_state(run))
    assert list_steps(tmp_path / "checkpoints") == [3]
    train(tiny_config(clips, checkpoint__every=100), tmp_path)
    assert _losses(tmp_path) == _losses(whole[0])


def test_saturated_scores_are_said_once_each_time():
    said: list[str] = []
    fake = types.SimpleNamespace(_saturated=False, _writer=types.SimpleNamespace(note=said.append))
    for number, share in enumerate((0.0, 0.5, 0.95, 1.0, 0.2, 0.0, 0.9), start=1):
        loop._Loop._note_saturated(fake, number, share)  # type: ignore[arg-type]
    assert [line[:11] for line in said] == ["step 3: 95%", "step 7: 90%"]
    assert all("lower optimizer.scorer_lr or a longer optimizer.warmup" in line for line in said)


def test_bad_records_are_skipped_and_too_many_stop_the_run(clips, tmp_path):
    messages = [{"question": "What?", "answer": "red"}]
    lines = [json.dumps({"video": f"missing{i}.mp4", "messages": messages}) for i in range(40)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    config = tiny_config(clips)
    config.data.sources = ((f"jsonl:{tmp_path}/bad.jsonl", 1.0, "train"),)
    with pytest.raises(ValueError, match="unusable"):
        train(config, str(tmp_path / "run"))
    config.data.bad_share = 1.0  # never for their share: but a run without data ends as well
    with pytest.raises(ValueError, match="none of the last .. records can be used, so there is nothing to train on"):
        train(config, str(tmp_path / "another"))


def test_micro_batches_give_the_update_of_the_whole_batch(clips):
    whole_run = RunConfig.build(tiny_config(clips, data__rows=8))
    parts_run = RunConfig.build(tiny_config(clips, data__rows=8, loss__accumulate=2))
    results = []
    for run in (whole_run, parts_run):
        mesh = make_mesh({"data": 1}, jax.devices()[:1])
        plan = blueprint(run, mesh)
        state = fresh_state(plan, run.seed)
        batch = _fake_batch(run)
        step = functools.partial(train_step, run.loss, run.seed, plan.model, plan.optimizer)
        new, metrics = jax.jit(step)(state, batch)
        results.append((jax.device_get(new.params), jax.device_get(metrics)))
    (one, m1), (two, m2) = results
    np.testing.assert_allclose(m1["loss"], m2["loss"], rtol=1e-5)
    for name in m1:
        np.testing.assert_allclose(m1[name], m2[name], rtol=2e-3, atol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two)


def _fake_batch(run: RunConfig) -> dict[str, jax.Array]:
    import tempfile

    from sttts_jax.data.pipeline import train_batches
    from sttts_jax.data.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer = train_tokenizer(["what color appeared first? red green"], directory, run.vlm.llm.vocab)
        return jax.tree.map(jnp.asarray, next(train_batches(run.data, tokenizer)))


def test_model_of_a_run_has_the_sizes_of_its_bucket(clips):
    run = RunConfig.build(tiny_config(clips))
    model = build_model(run.model, run.pruning, run.data.row_shape)
    assert (model.capacity, model.length) == (run.data.row_shape.kept, 256)
