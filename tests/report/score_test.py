"""`sttts-jax score`: the mask of the whole model, for any video file, as a page or as arrays."""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.cli import score
from sttts_jax.cli.main import run as run_command
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.video import decode, display_size
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.masks import unpack_mask
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer import open as opening
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.models.lora import LoraConfig
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept
from sttts_jax.report.look import _look, look
from sttts_jax.train.config import LORA_TARGETS
from sttts_jax.train.state import init_params
from sttts_jax.trees import map_named, named_leaves
from tests.shared_files import VIDEOS, needs_data

GRID = preset("tiny").vit.cell_grid.shape
CELLS = preset("tiny").vit.cells


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Three seconds of noise, wider than high."""
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 96, 3), np.uint8)
    (tmp_path / "noise.mp4").write_bytes(encode_mp4(frames, 4))
    return tmp_path / "noise.mp4"


def _score(runs: dict[str, Path], method: str, video: Path, out: Path, *more: str) -> int:
    return run_command(
        "score",
        score.main,
        ["--checkpoint", str(runs[method]), "--video", str(video), "--out", str(out), *more],
    )


def test_arrays(runs: dict[str, Path], video: Path, tmp_path: Path) -> None:
    assert _score(runs, "scorer", video, tmp_path / "a.npz") == 0
    with np.load(tmp_path / "a.npz") as saved:
        assert set(saved) == {"scores", "keep", "times", "fraction"}
        keep, scores = saved["keep"], saved["scores"]
        assert keep.shape == scores.shape == (4, *GRID)
        assert keep.dtype == np.bool_
        assert keep.sum() == n_kept(4, "0.5", CELLS)
        assert keep[0].all()
        assert scores[1:][keep[1:]].min() >= scores[1:][~keep[1:]].max()
        assert np.allclose(saved["times"], [0, 1, 2, 3])
        assert saved["fraction"] == 0.5


def test_arrays_of_a_clip_at_another_budget(runs: dict[str, Path], video: Path, tmp_path: Path) -> None:
    more = ["--pruned_fraction", "0.25", "--max_frames", "3", "--start", "1", "--end", "2"]
    assert _score(runs, "random", video, tmp_path / "a.npz", *more) == 0
    with np.load(tmp_path / "a.npz") as saved:
        assert set(saved) == {"keep", "times", "fraction"}  # no scorer, no scores
        assert saved["keep"].sum() == n_kept(3, "0.25", CELLS)
        assert np.allclose(saved["times"], [1, 1.5, 2])


@pytest.mark.parametrize("method", ["easy", "reference_tracking", "random"])
def test_any_checkpoint_is_pruned_without_training(
    runs: dict[str, Path], checkpoints: dict[str, Checkpoint], video: Path, tmp_path: Path, method: str
) -> None:
    """All three runs have the same weights but for the scorer, which these methods do without."""
    frames = np.random.default_rng(0).integers(0, 255, (4, *checkpoints["none"].data.size, 3), np.uint8)
    kept = [look(c.with_method(method), frames, "0.3")[0] for c in checkpoints.values()]
    assert all(np.array_equal(kept[0], other) for other in kept)
    assert kept[0].sum() == n_kept(4, "0.3", CELLS) and kept[0][0].all()
    assert not np.array_equal(kept[0], look(checkpoints["scorer"], frames, "0.3")[0])
    assert _score(runs, "none", video, tmp_path / "a.npz", "--method", method, "--k", "0.3") == 0
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["keep"].sum() == n_kept(4, "0.3", CELLS) and saved["fraction"] == 0.3 and "scores" not in saved


def test_methods_need_what_they_read(checkpoints: dict[str, Checkpoint]) -> None:
    assert checkpoints["scorer"].with_method("soft_only").trained.fraction == "0"
    assert checkpoints["none"].with_method("easy").trained.fraction == "0.5"  # of the run's config
    with pytest.raises(ValueError, match="has no scorer, so it cannot prune by method 'scorer'; choose one of random"):
        checkpoints["none"].with_method("scorer")
    with pytest.raises(ValueError, match="pruning.method='best' is unknown"):
        checkpoints["none"].with_method("best")


def test_an_untrained_scorer_is_said(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_checkpoint(runs["scorer"])
    assert "never trained" not in caplog.text
    monkeypatch.setattr(opening, "fresh_leaves", lambda meta: ["connector/out", "vit/scorer/fc1"])
    read_checkpoint(runs["scorer"], "easy")
    read_checkpoint(runs["none"])
    assert "never trained" not in caplog.text
    read_checkpoint(runs["scorer"])
    assert "its scorer is fresh and was never trained, so what it keeps means nothing" in caplog.text


def test_page(runs: dict[str, Path], video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _score(runs, "scorer", video, tmp_path / "pages/a.html") == 0
    page = (tmp_path / "pages/a.html").read_text()
    assert "noise.mp4" in page
    assert "step 2" in page
    assert f"4 frames, {n_kept(4, '0.5', CELLS)} of {4 * CELLS} cells kept" in capsys.readouterr().out


def _with_lora(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with factors of LoRA in all its projections, none of them zero."""
    vlm = dataclasses.replace(checkpoint.vlm, lora=LoraConfig(2, 64.0, LORA_TARGETS))
    adapted = dataclasses.replace(checkpoint, vlm=vlm)
    shape = adapted.data.row_shape
    boxed = jax.eval_shape(lambda: init_params(adapted.model(shape), shape, jax.random.key(0)))
    rng, old = np.random.default_rng(0), named_leaves(checkpoint.params)

    def leaf(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        return old[name] if name in old else jnp.asarray(rng.normal(size=like.shape), like.dtype)

    params = map_named(leaf, nn.unbox(boxed))
    return dataclasses.replace(adapted, load=lambda mesh: params)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_the_vision_part_alone_keeps_what_the_whole_model_keeps(
    checkpoints: dict[str, Checkpoint], video: Path, tmp_path: Path, lora: bool
) -> None:
    plain, file = checkpoints["scorer"], tmp_path / "own.jsonl"
    checkpoint = _with_lora(plain) if lora else plain
    file.write_text(json.dumps({"video": video.name, "messages": [{"question": "What?", "answer": "noise"}]}))
    task = find_task(f"jsonl:{file}")
    questions = Questions(task, task_source(task, checkpoint.data), checkpoint.tokenizer, checkpoint.data)
    _, (answer,) = Harness(checkpoint, 8).run(questions, checkpoint.trained)
    frames = decode(video, FrameSampling(4, 2.0), size=checkpoint.data.size).frames
    keep, scores = look(checkpoint, frames, "0.5")
    assert np.array_equal(keep, unpack_mask(answer["mask"], keep.shape))
    assert scores is not None
    assert lora != np.array_equal(keep, look(plain, frames, "0.5")[0])  # the factors change what is kept


def test_videos_of_one_length_share_a_program(checkpoints: dict[str, Checkpoint]) -> None:
    rng, before, kept = np.random.default_rng(0), _look._cache_size(), set()
    for seed in range(3):
        frames = rng.integers(0, 256, (3, *checkpoints["scorer"].data.size, 3), np.uint8)
        kept.add(look(checkpoints["scorer"], frames, "0.5", seed)[0].tobytes())
    assert len(kept) == 3 and _look._cache_size() == before + 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("sar_2x1_testsrc.mp4", (270, 960)),  # stored 640 x 360 with pixels twice as wide as high
        ("rotated_90_3frames.mov", (568, 320)),  # stored lying
        ("flipping_a_pancake.mkv", (240, 426)),
    ],
)
@needs_data
def test_real_videos_in_their_own_shape(
    name: str, size: tuple[int, int], runs: dict[str, Path], tmp_path: Path
) -> None:
    assert display_size(VIDEOS / name, name) == size
    assert _score(runs, "scorer", VIDEOS / name, tmp_path / "a.html") == 0
    assert (tmp_path / "a.html").stat().st_size > 20_000


@needs_data
@pytest.mark.parametrize(
    ("name", "cause"),
    [("audio_only.mp4", "no video stream"), ("no_streams.mp4", "no streams"), ("truncated_silent.mp4", "cut short")],
)
def test_real_bad_files(
    name: str, cause: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _score(runs, "scorer", VIDEOS / name, tmp_path / "a.html") == 2
    assert cause in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


def test_mistakes_are_one_sentence(
    runs: dict[str, Path],
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Checkpoint, "params", property(lambda self: pytest.fail("weights were loaded")))
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    out = tmp_path / "a.npz"
    for path, more, cause in (
        (tmp_path / "junk.mp4", [], "junk.mp4: cannot be opened"),
        (tmp_path / "absent.mp4", [], "no such file"),
        (video, ["--start", "9"], "outside of the video's"),
        (video, ["--start", "2", "--end", "1"], "is empty or outside"),
        (video, ["--pruned_fraction", "1"], "out of range"),
        (video, ["--max_frames", "-1"], "must be positive"),
        (video, ["--method", "none", "--k", "0.5"], "'none' removes nothing, so a fraction of 0.5 cannot be had"),
        (video, ["--method", "fast"], "pruning.method='fast' is unknown; choose one of scorer, random"),
        (video, ["--out", str(tmp_path / "junk.mp4/a.npz")], "junk.mp4 is a file; choose another place"),
        (video, ["--out", "a.gif"], "must end in .html or .npz"),
        (video, ["--checkpoint", str(tmp_path)], "holds no whole checkpoint"),
    ):
        assert _score(runs, "scorer", path, out, *more) == 2
        said = capsys.readouterr().err
        assert cause in said
        assert len(said.strip().splitlines()) == 1
