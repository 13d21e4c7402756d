"""Records of a file of one's own: videos, images, text; what is wrong is said with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.data.record import RecordError
from sttts_jax.data.sources.jsonl import JsonlSource

ASK = [{"question": "What?", "answer": "that"}]


def _source(folder: Path, *records: dict[str, Any]) -> JsonlSource:
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    return JsonlSource(str(file))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    record = _source(tmp_path, {"video": "a.mp4", "images": ["b.png", "/c.png"], "messages": ASK})[0]
    assert record.video == str(tmp_path / "a.mp4")
    assert record.images == (str(tmp_path / "b.png"), "/c.png")


def test_text_alone(tmp_path: Path) -> None:
    record = _source(tmp_path, {"messages": ASK, "id": "t"})[0]
    assert (record.id, record.video, record.images) == ("t", None, ())
    assert record.messages[0].style == "user_qa"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": "a.png"}, "`images` must be a list of paths"),
        ({"images": [""]}, "`images` must be a list of paths"),
        ({"image": ["a.png"]}, "image"),
        ({"messages": []}, "needs `messages`"),
    ],
)
def test_a_bad_record_names_its_line(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    source = _source(tmp_path, {"messages": ASK}, {"messages": ASK, **fields})
    assert len(source) == 2 and source[0]
    with pytest.raises(RecordError, match=said) as caught:
        source[1]
    assert "own.jsonl" in str(caught.value) and "3" in str(caught.value)
