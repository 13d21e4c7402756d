"""`sttts-jax data ...` as typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sttts_jax import exit_codes
from sttts_jax.cli.data import main
from sttts_jax.cli.main import run
from sttts_jax.data.sources.encode import encode_mp4
from tests.data.films import film, numbered


def test_build_list_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "data")
    assert main(["build", "shapes_video_qa", "--data_dir", folder, "--size", "8,4,4"]) == 0
    assert "8 train, 4 validation, 4 test clips in" in capsys.readouterr().out
    assert main(["list", "--data_dir", folder]) == 0
    listing = capsys.readouterr().out
    assert "built: shapes_video_qa/8-4-4" in listing and "jsonl:PATH" in listing
    sheet = tmp_path / "sheets" / "a.png"
    words = [
        "inspect",
        "shapes_video_qa",
        "--data_dir",
        folder,
        "--split",
        "test",
        "--count",
        "2",
        "--sheet",
        str(sheet),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "4 records" in shown and "3.50 s, 72 x 72, 8 frames" in shown and "direction:" in shown
    assert Image.open(sheet).size == (8 * 148, 2 * 148)


def test_inspect_of_own_files_names_the_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    lines = [{"video": v, "messages": [{"question": "Q", "answer": "B"}]} for v in ("a.mp4", "gone.mp4")]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["inspect", f"jsonl:{tmp_path}/set.jsonl"]) == exit_codes.MISTAKE
    assert "[1] cannot be used: " in capsys.readouterr().out


def test_frames_are_chosen_by_the_rule_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((16, 16, 16, 3), np.uint8), 8))
    (tmp_path / "set.jsonl").write_text(json.dumps({"video": "a.mp4", "messages": [{"question": "Q", "answer": "B"}]}))
    for rule, times in ((), "0.0 0.5 1.0 1.5 2.0 s"), (("--sampling", "transformers"), "0.0 0.5 1.0 1.5 s"):
        assert main(["inspect", f"jsonl:{tmp_path}/set.jsonl", *rule]) == 0
        assert f"frames at {times}\n" in capsys.readouterr().out


def test_a_film_that_changes_its_size_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [film(numbered(10, height=size, width=size), "mpegts") for size in (48, 64)]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    (tmp_path / "set.jsonl").write_text(json.dumps({"video": "a.ts", "messages": [{"question": "Q", "answer": "B"}]}))
    assert main(["inspect", f"jsonl:{tmp_path}/set.jsonl", "--sheet", str(tmp_path / "a.png")]) == 0
    assert "2.00 s, 48 x 48, 5 frames at 0.0 0.5 1.0 1.5 2.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inspect", "jsonl:{tmp}/a.jsonl", "--sampling", "best"],
            "sampling='best' is unknown; choose one of molmo2, t",
        ),
        (["build", "shapes_video_qa", "--size", "1,2"], "must be three whole numbers of clips"),
        (["build", "kinetics"], "known are shapes_video_qa"),
        (["inspect", "shapes_video_qa", "--data_dir", "{tmp}"], "build it with `sttts-jax data build shapes_video_qa"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("data", main, [w.format(tmp=tmp_path) for w in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
