"""`bench data` end to end on small videos: every stage is there, numbers fit together, and it refuses in a sentence."""

import json
import pathlib

import numpy as np
import pytest

from sttts_jax.bench.loading import PIPELINE, STAGES, LoadingPlan, _rows, file_source, stage_table
from sttts_jax.cli import bench
from sttts_jax.data.config import data_config
from sttts_jax.data.sources.encode import encode_mp4

SMALL = ["--frames", "4", "--size", "24", "--cells", "4", "--rows", "2", "--records", "3", "--batches", "1"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(3):
        frames = np.random.default_rng(i).integers(0, 256, (8, 32, 48, 3), np.uint8)
        (folder / f"{i}.mp4").write_bytes(encode_mp4(frames, 4.0))
    (folder / "notes.txt").write_text("not a video")
    return folder


def _run(*words: str) -> int:
    return bench.main(["data", *words])


def test_a_folder_of_videos(videos: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.json"
    words = [str(videos), *SMALL, "--workers", "0,2", "--rounds", "2", "--step_s", "1000", "--json", str(path)]
    assert _run(*words) == 0
    shown = capsys.readouterr().out
    assert "decode" in shown and "yes" in shown and "rows of 4 frames at 24 x 24" in shown
    record = json.loads(path.read_text())
    assert {"command", "host", "versions", "sizes", "rounds", "seed"} <= set(record)
    rows = record["rows"]
    assert [(row["what"], row["workers"]) for row in rows] == [
        *((s, None) for s in STAGES),
        (PIPELINE, 0),
        (PIPELINE, 2),
    ]
    for row in rows:
        assert row["spread"][0] <= row["seconds"] <= row["spread"][1]
        assert row["per_s"] == pytest.approx(1 / row["seconds"])
        assert row["frames_per_s"] == pytest.approx(4 * row["per_s"])  # 2 s at 2 frames a second fill a row
        assert row["mb_per_s"] > 24 * 24 * 3 * 4 / 1e6 * row["per_s"]
    stages, (inline, threads) = rows[: len(STAGES)], rows[len(STAGES) :]
    assert sum(row["share"] for row in stages) == pytest.approx(1, abs=0.3)  # medians of shares
    assert all(row["seconds"] > 0 and row["speedup"] is None for row in stages)
    assert inline["speedup"] == 1 and threads["speedup"] > 0 and inline["share"] is None
    assert inline["fed"] == pytest.approx(1000 / (2 * inline["seconds"]))


def test_a_jsonl_file_with_a_bad_record(videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    message = {"question": "What is it?", "answer": "noise"}
    names = ["missing.mp4", *["0.mp4", "1.mp4"] * 10]
    lines = [json.dumps({"video": str(videos / name), "messages": [message]}) for name in names]
    listing, out = tmp_path / "list.jsonl", tmp_path / "data.json"
    listing.write_text("\n".join(lines))
    assert file_source(str(listing), str(tmp_path)) == f"jsonl:{listing}"
    assert _run(str(listing), *SMALL, "--workers", "0", "--rounds", "1", "--videos", "2", "--json", str(out)) == 0
    assert len(json.loads(out.read_text())["rows"]) == len(STAGES) + 1


def test_nothing_that_can_be_used(tmp_path: pathlib.Path) -> None:
    listing = tmp_path / "list.jsonl"
    listing.write_text(json.dumps({"video": "missing.mp4", "messages": [{"question": "What?", "answer": "it"}]}))
    with pytest.raises(ValueError, match="none of 3 records can be used; the last one: .*no such file"):
        _run(str(listing), *SMALL)


def test_a_step_that_is_not_fed() -> None:
    config = data_config(sources=(("shapes_video_qa",),), rows=4)
    plan = LoadingPlan(config, [1, 2], records=1, batches=1, rounds=3, step_s=2.0)
    pipelines = np.array([[1.0, 0.5], [1.0, 0.25], [2.0, 0.5]])
    stages = np.tile(np.arange(1.0, 7.0), (3, 1))
    rows = _rows(plan, stages, pipelines, frames=8.0, size=4e6)
    assert [row.share for row in rows[:6]] == pytest.approx([i / 21 for i in range(1, 7)])
    slow, fast = rows[6:]
    assert (slow.seconds, slow.speedup, slow.fed, slow.mb_per_s) == (1.0, 1.0, 0.5, 4.0)
    assert (fast.seconds, fast.speedup, fast.fed, fast.frames_per_s) == (0.5, 4.0, 1.0, 16.0)
    assert stage_table(rows).row_count == 8


def test_names_and_empty_folders(tmp_path: pathlib.Path) -> None:
    assert file_source("shapes_video_qa/3-1-1", str(tmp_path)) == "shapes_video_qa/3-1-1"
    with pytest.raises(ValueError, match="holds no video file"):
        file_source(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", "x"], "--workers x must be a whole number"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--step_s", "0"], "--step_s 0 must be more than 0"),
        (["--k", "2"], "pruned_fraction=2 is out of range"),
        (["--json", "."], "--json . is a directory"),
        (["--tokenizer", "missing"], "no such file"),
    ],
)
def test_bad_arguments_are_one_sentence(words: list[str], sentence: str, videos: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        _run(str(videos), *SMALL, *words)


def test_an_unknown_dataset() -> None:
    with pytest.raises(ValueError, match="there is no data source 'nothing'"):
        _run("nothing", *SMALL)
