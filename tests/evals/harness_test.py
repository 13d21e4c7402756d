"""Evaluation from a workdir alone: counts, budgets, resuming, bad videos, the table and the report."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sttts_jax.cli import evaluate
from sttts_jax.cli.main import run as run_command
from sttts_jax.data.evaluation import QuestionShape, eval_batches
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.masks import unpack_mask
from sttts_jax.evals.questions import (
    BUCKET,
    QUESTION_BUCKET,
    SLACK,
    Questions,
    frame_ladder,
    task_source,
)
from sttts_jax.evals.results import ResultsFile
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.checkpoint import Checkpoint, Setting, canonical_fraction
from sttts_jax.mesh import make_mesh
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept

LIMIT = 19  # two full batches of 8 and a part of one
CELLS = preset("tiny").vit.cells
METHODS = ("scorer", "none", "random")
FLAGS = ["--tasks", "shapes_video_qa", "--limit", str(LIMIT), "--batch", "8"]


def _questions(checkpoint: Checkpoint, name: str = "shapes_video_qa", limit: int | None = LIMIT) -> Questions:
    task = find_task(name)
    return Questions(task, task_source(task, checkpoint.data), checkpoint.tokenizer, checkpoint.data, limit)


def _answers(workdir: Path) -> list[dict[str, Any]]:
    result = _saved(workdir)[0]
    return [json.loads(line) for line in (workdir / "eval" / result["predictions"]).read_text().splitlines()]


def _saved(workdir: Path) -> list[dict[str, Any]]:
    return json.loads((workdir / "eval/results.json").read_text())["results"]


@pytest.fixture(scope="module")
def text(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the command prints over three runs; their results lie in WORKDIR/eval, the page beside the workdirs."""
    directories, root = [str(runs[method]) for method in METHODS], runs["scorer"].parent
    argv = ["--workdir", ",".join(directories), *FLAGS]
    page = ["--report", str(root / "report.html"), "--picture", str(root / "kept.png")]
    patch = pytest.MonkeyPatch()
    lines: list[str] = []
    patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
    try:
        assert evaluate.main([*argv, *page]) == 0
    finally:
        patch.undo()
    yield "\n".join(lines)


def test_table(text: str) -> None:
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("method"))
    header, rows = lines[first], lines[first + 1 : first + 4]
    families = ["direction", "order", "count", "what", "where", "color_change"]
    assert header.split()[:11] == ["method", "run", "removed", "frames", "all", *families]
    assert [row.split()[0] for row in rows] == ["STTS", "unpruned", "random"]
    assert f"shapes_video_qa, {LIMIT} questions" in text
    assert " x)" not in text  # runs of different hours are not set against each other


def test_results_hold_every_question_once(text: str, runs: dict[str, Path]) -> None:
    for method in METHODS:
        (result,), answers = _saved(runs[method]), _answers(runs[method])
        assert [a["number"] for a in answers] == list(range(LIMIT))
        assert result["overall"]["count"] == LIMIT == sum(f["count"] for f in result["families"].values())
        assert result["overall"]["right"] == sum(a["right"] is True for a in answers)
        assert result["overall"]["unparsable"] == sum(a["right"] is None for a in answers)
        assert result["overall"]["low"] <= result["overall"]["accuracy"] <= result["overall"]["high"]
        assert result["compilations"] == len(result["buckets"]) == 1
        assert not result["bad"]
        assert result["key"]["step"] == 2
        assert result["key"]["fraction"] == ("0" if method == "none" else "0.5")


def test_exactly_the_budget_is_kept(text: str, runs: dict[str, Path]) -> None:
    for method in METHODS:
        kept = 4 * CELLS if method == "none" else n_kept(4, "0.5", CELLS)
        answers = _answers(runs[method])
        assert {a["kept"] for a in answers} == {kept}
        assert _saved(runs[method])[0]["kept_share"] == kept / (4 * CELLS)
        masks = [unpack_mask(a["mask"], (4, CELLS)) for a in answers]
        assert all(mask[0].all() and mask.sum() == kept for mask in masks)


def test_scores_are_counted_for_methods_that_have_some(text: str, runs: dict[str, Path]) -> None:
    histogram = _saved(runs["scorer"])[0]["histogram"]
    kept = n_kept(4, "0.5", CELLS) - CELLS  # first frames are not counted
    assert sum(histogram["kept"]) == LIMIT * kept
    assert sum(histogram["dropped"]) == LIMIT * (3 * CELLS - kept)
    assert _saved(runs["random"])[0]["histogram"] is None


def test_report_and_picture(text: str, runs: dict[str, Path]) -> None:
    root = runs["scorer"].parent
    page = (root / "report.html").read_text()
    assert all(name in page for name in ("unpruned", "STTS, 50 % removed", "random, 50 % removed", "Auxiliary loss"))
    assert page.count("data:image/jpeg") >= 2 * 4  # at least one clip, four frames, two methods
    assert (root / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_finished_measurements_are_read_not_repeated(
    text: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--workdir", str(runs["scorer"]), *FLAGS]

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Harness, "run", never)
    assert evaluate.main(argv) == 0
    assert "read from results.json" in capsys.readouterr().out
    for change in (["--overwrite"], ["--max_fps", "1"], ["--seed", "1"], ["--out", str(runs["scorer"] / "other")]):
        with pytest.raises(AssertionError, match="measured again"):
            evaluate.main([*argv, *change])


def test_results_of_another_run_are_refused(
    text: str, runs: dict[str, Path], checkpoints: dict[str, Checkpoint]
) -> None:
    with pytest.raises(ValueError, match="another config"):
        ResultsFile(runs["scorer"] / "eval", "random", checkpoints["random"].config)


def test_other_fraction_and_frames(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["scorer"]
    setting, questions = checkpoint.setting("0.3", 6), _questions(checkpoint)
    harness = Harness(checkpoint, 8)
    result, answers = harness.run(questions, setting)
    assert result.overall.count == LIMIT
    assert result.frames_mean == 6
    assert {a["kept"] for a in answers} == {n_kept(6, "0.3", CELLS)}
    again, same = harness.run(questions, setting)
    assert (result.compilations, again.compilations) == (1, 0)
    assert same == answers
    # Answers depend on neither the rest of the batch nor the mesh; a batch grows to what divides over it.
    wide = Harness(dataclasses.replace(checkpoint, place=lambda: make_mesh({"fsdp": -1, "sequence": 2})), 13)
    _, alike = wide.run(questions, setting)
    assert wide.rows == 16
    assert [(a["prediction"], a["mask"]) for a in alike] == [(a["prediction"], a["mask"]) for a in answers]


def test_other_weights_of_the_model_need_no_other_program(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["scorer"]
    harness, questions = Harness(checkpoint, 8), _questions(checkpoint)
    first, before = harness.run(questions, checkpoint.trained)
    harness.reload(7, jax.tree.map(lambda x: -x, checkpoint.params))
    second, after = harness.run(questions, checkpoint.trained)
    assert (first.compilations, second.compilations) == (1, 0)
    assert (first.key.step, second.key.step) == (2, 7)
    assert [a["mask"] for a in before] != [a["mask"] for a in after]


def test_random_choice_is_a_matter_of_the_seed(
    text: str, runs: dict[str, Path], checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint = checkpoints["random"]
    harness, questions = Harness(checkpoint, 8, seed=0), _questions(checkpoint)
    masks = [a["mask"] for a in harness.run(questions, checkpoint.trained)[1]]
    assert masks == [a["mask"] for a in _answers(runs["random"])]
    # Not one draw for all rows and batches, but one for the questions that share a row.
    (bucket,) = questions.plan(checkpoint.trained, [4], 8)
    assert len(set(masks)) == len(bucket.groups) > 4
    assert all(len({masks[number] for number in group}) == 1 for group in bucket.groups)
    harness.seed = 1
    assert masks != [a["mask"] for a in harness.run(questions, checkpoint.trained)[1]]


def test_a_method_without_training_is_measured_as_the_run_of_that_method(
    text: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--workdir", str(runs["none"]), *FLAGS, "--out", str(tmp_path), "--method", "random"]
    assert evaluate.main(argv) == 0
    assert "\nrandom  none  50 %" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    lines = [json.loads(line) for line in (tmp_path / result["predictions"]).read_text().splitlines()]
    assert result["key"]["method"] == "random" and lines == _answers(runs["random"])


def test_bad_videos_are_counted_and_named(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), np.uint8)
    (tmp_path / "good.mp4").write_bytes(encode_mp4(frames, 4))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    asked = {"question": "What color?", "answer": "red", "options": ["red", "blue"], "style": "video_multiple_choice"}
    lines = [{"id": name, "video": f"{name}.mp4", "messages": [asked]} for name in ("good", "broken", "absent")]
    lines += [{"id": "text", "messages": [asked]}, {"id": "odd", "messages": [{**asked, "answer": "green"}]}]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join([*map(json.dumps, lines), "{not json"]))
    checkpoint = checkpoints["none"]
    result, answers = Harness(checkpoint, 8).run(_questions(checkpoint, f"jsonl:{file}", None), checkpoint.trained)
    assert result.overall.count == 2  # the good video and the text alone
    assert [bad["id"] for bad in result.bad] == ["record 1", "record 2", "record 4", "record 5"]
    assert "broken.mp4" in result.bad[0]["error"]
    assert "none of the options" in result.bad[2]["error"]
    assert [a["number"] for a in answers] == list(range(6))
    assert (answers[3]["frames"], answers[3]["cells"]) == (0, 0)


def test_rows_hold_the_longest_and_little_more(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["scorer"]
    questions = _questions(checkpoint, limit=None)
    for fraction, frames, fps in (("0", 3, 2.0), ("0.5", 9, None), ("0.7", 5, 1.0)):
        setting = Setting(fraction, frames, fps)
        (bucket,) = questions.plan(setting, frame_ladder(frames, [frames]), 8)
        shape = checkpoint.data.evaluation_shape(bucket.frames, fraction, bucket.length)
        room = QuestionShape(bucket.most, bucket.longest)
        groups = [[questions.asked[number] for number in group] for group in bucket.groups]
        sampling = checkpoint.frame_sampling(setting)
        (batch,) = eval_batches(
            questions.records, checkpoint.tokenizer, shape, room, groups, sampling, max_crops=0, rows=len(groups)
        )
        assert (batch.lengths > 0).sum() == len(questions.asked)
        unpruned = (batch.arrays["example"] >= 0).sum(1)
        count = (batch.arrays["frame_item"] >= 0).sum(1)
        alive = max(u - CELLS * f + n_kept(f, fraction, CELLS) for u, f in zip(unpruned, count, strict=True))
        assert shape.length % BUCKET == 0 and SLACK <= shape.length - alive < SLACK + BUCKET
        assert room.longest % QUESTION_BUCKET == 0 and 0 <= room.longest - batch.lengths.max() < QUESTION_BUCKET
        whole = questions.row_shape(setting).length
        assert whole % BUCKET == 0 and SLACK <= whole - alive - batch.lengths.max() < SLACK + BUCKET


def test_methods_that_drop_nothing_have_one_fraction(checkpoints: dict[str, Checkpoint]) -> None:
    soft = dataclasses.replace(
        checkpoints["scorer"], pruning=dataclasses.replace(checkpoints["scorer"].pruning, method="soft_only")
    )
    assert checkpoints["none"].setting("0.7") == checkpoints["none"].trained
    assert soft.setting("0.7").fraction == soft.trained.fraction == "0"
    assert checkpoints["scorer"].setting("0.70").fraction == "0.7"


@pytest.mark.parametrize(("text", "same"), [("0.50", "0.5"), ("0", "0"), ("0.0", "0"), ("1e-1", "0.1"), (".3", "0.3")])
def test_one_spelling_a_fraction(text: str, same: str) -> None:
    assert canonical_fraction(text) == same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--workdir": "no/such/run"}, "holds no whole checkpoint, because there is no such directory; give"),
        ({"--tasks": "shape_video_qa"}, "did you mean 'shapes_video_qa'"),
        ({"--tasks": "jsonl:absent.jsonl"}, "no such file"),
        ({"--tasks": "shapes_video_qa:dev"}, "has no split 'dev'"),
        ({"--tasks": ","}, "--tasks is empty"),
        ({"--pruned_fraction": "0.5,1.5"}, "out of range"),
        ({"--pruned_fraction": "half"}, "is not a number"),
        ({"--max_frames": "0"}, "--max_frames 0 must be a whole number"),
        ({"--frame_buckets": "8,x"}, "--frame_buckets x must be a whole number"),
        ({"--max_fps": "-1"}, "must be positive"),
        ({"--batch": "0"}, "--batch 0 must be at least 1"),
        ({"--mesh": "fsdp=all"}, "--mesh fsdp=all must be AXIS=N"),
        ({"--mesh": "fsdp=3"}, "needs 3 devices but there are 8"),
        ({"--mesh": "fsdp=-1,tensor=4"}, "must divide the 2 heads of the vision transformer"),
        ({"--limit": "0"}, "--limit 0 must be at least 1"),
        ({"--report": "page.txt"}, "must end in .html"),
        ({"--picture": "page.html"}, "must end in .png"),
        ({"--report": "pyproject.toml/page.html"}, "pyproject.toml is a file; choose another place"),
        ({"--out": "pyproject.toml/eval"}, "pyproject.toml is a file; choose another place, with --out DIR"),
        ({"--method": "easiest"}, "pruning.method='easiest' is unknown; choose one of scorer, random, easy"),
        ({"--max_crops": "-1"}, "max_crops=-1 must not be negative"),
        ({"--data_dir": "nowhere"}, "is not in nowhere"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_compiles(
    changes: dict[str, str],
    message: str,
    runs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Checkpoint, "params", property(lambda self: pytest.fail("weights were loaded")))
    words = {"--workdir": str(runs["scorer"]), "--tasks": "shapes_video_qa", **changes}
    argv = [word for pair in words.items() for word in pair]
    assert run_command("evaluate", evaluate.main, argv) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
