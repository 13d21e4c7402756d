"""Datasets on disk and files of one's own; every mistake is one sentence."""

import json
import sys
from pathlib import Path

import pytest

from sttts_jax.data.config import Source
from sttts_jax.data.record import RecordError
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources import registry
from sttts_jax.data.sources.shapes_video_qa import make_clip
from sttts_jax.data.video import decode

FOUR_EACH = {"train": 4, "validation": 4, "test": 4}


def test_a_built_dataset_reads_back(data_dir: str) -> None:
    source = registry.open_source(Source("shapes_video_qa", 1.0, "test", data_dir))
    assert len(source) == 8
    for index in range(8):
        record = source[index]
        clip = make_clip(int(record.id.split("_")[1]))
        assert [(m.family, m.question, m.options, m.answer, m.style) for m in record.messages] == [
            (q.family, q.question, q.options, q.answer, q.style) for q in clip.qa
        ]
        video = decode(record.video, FrameSampling(28), size=None)
        assert abs(video.frames[0].astype(int) - clip.frames[0]).mean() < 6
    assert "tensorflow" not in sys.modules


def test_splits_share_no_clip_and_may_be_cut(data_dir: str) -> None:
    def ids(split: str) -> set[str]:
        source = registry.open_source(Source("shapes_video_qa", 1.0, split, data_dir))
        return {source[i].id for i in range(len(source))}

    assert len(ids("train")) == 24 and len(ids("train[:50%]")) == 12
    assert not ids("train") & ids("test") and not ids("train") & ids("validation")


def test_building_again_changes_nothing(data_dir: str) -> None:
    path = Path(registry.build("shapes_video_qa", data_dir, {"train": 24, "validation": 4, "test": 8}))
    assert path.parent.name == "24-4-8" and registry.built_configs("shapes_video_qa", data_dir) == ["24-4-8"]


def test_a_build_of_one_style_asks_in_that_style(tmp_path: Path) -> None:
    for style in ("short_answer", "multiple_choice"):
        path = Path(registry.build("shapes_video_qa", str(tmp_path), FOUR_EACH, style))
        assert path.parent.name == f"4-4-4-{style}"
        source = registry.open_source(Source(f"shapes_video_qa/{path.parent.name}", 1.0, "test", str(tmp_path)))
        assert {m.style for i in range(4) for m in source[i].messages} == {f"video_{style}"}
    with pytest.raises(ValueError, match="must be one of both, short_answer, multiple_choice"):
        registry.build("shapes_video_qa", str(tmp_path), FOUR_EACH, "long")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("shapes", "train", "known are shapes_video_qa, jsonl:PATH"),
        ("shapes_video_qa/8-8-8", "train", "built are 24-4-8; build it with .*--size 8,8,8"),
        ("shapes_video_qa/8-8-8-short_answer", "train", "--size 8,8,8 --style short_answer`"),
        ("shapes_video_qa", "dev", "its splits are train, validation, test"),
        ("jsonl:nowhere.jsonl", "train", "no such file"),
    ],
)
def test_wrong_names_are_told_the_right_ones(data_dir: str, name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.open_source(Source(name, 1.0, split, data_dir))


def test_what_was_never_built_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="build it with `sttts-jax data build shapes_video_qa"):
        registry.open_source(Source("shapes_video_qa", 1.0, "train", str(tmp_path)))
    with pytest.raises(ValueError, match="multiple of 4"):
        registry.build("shapes_video_qa", str(tmp_path), {"train": 6, "validation": 4, "test": 4})
    with pytest.raises(ValueError, match="nothing to build"):
        registry.build("imagenet", str(tmp_path), {})


def test_jsonl_records(tmp_path: Path) -> None:
    lines = [
        {
            "video": "a.mp4",
            "messages": [{"question": "Q?", "answer": "b", "options": ["a", "b"], "style": "video_short_answer"}],
            "start": 1,
            "id": "x",
        },
        {"messages": [{"question": "Q?", "answer": "b", "follow_ups": [["And?", "c"]], "weight": 0.2}]},
        {"video": "/abs/b.mp4", "messages": [{"question": "Q?", "answer": "b"}], "subtitles": [[0, 1, "hi"]]},
    ]
    file = tmp_path / "set.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    source = registry.open_source(Source(f"jsonl:{file}"))
    assert len(source) == 3
    assert source[0].video == str(tmp_path / "a.mp4") and source[0].id == "x" and source[0].start == 1
    assert source[0].messages[0].options == ("a", "b") and source[1].messages[0].style == "user_qa"
    assert source[1].video is None and source[1].messages[0].follow_ups == (("And?", "c"),)
    assert source[2].video == "/abs/b.mp4" and source[2].subtitles == ((0.0, 1.0, "hi"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "set.jsonl:1: is not JSON"),
        ("[]", "needs a JSON object, got list"),
        ('{"video": "a"}', "needs `messages`"),
        ('{"messages": [{"question": "x"}]}', "needs the text `answer`"),
        ('{"messages": [{"question": "x", "answer": "y", "anser": 1}]}', "unknown field anser; known are answer"),
        ('{"messages": [{"question": "x", "answer": "y"}], "subtitles": [1]}', "`subtitles` must be"),
        (
            '{"messages": [{"question": "x", "answer": "y", "weight": "much"}]}',
            "`weight` must be a finite number, got 'much'",
        ),
    ],
)
def test_a_bad_line_is_a_bad_record(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(line)
    source = registry.open_source(Source(f"jsonl:{file}"))
    with pytest.raises(RecordError, match=message):
        source[0]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        registry.open_source(Source(f"jsonl:{tmp_path / 'set.jsonl'}"))
