"""Records of a file of one's own: videos, images, text; what is wrong is said with file and line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.data.files import content_digest
from sttts_jax.data.record import RecordError
from sttts_jax.data.sources.jsonl import JsonlSource, QuestionFile
from tests.fake_gcs import FakeGcs

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


def test_null_is_absent_and_other_kinds_are_refused(tmp_path: Path) -> None:
    absent = {"video": None, "id": None, "start": None, "subtitles": None, "images": None}
    asked = {**ASK[0], "style": None, "options": None, "family": None, "follow_ups": None, "weight": None}
    source = _source(tmp_path, {"messages": [asked], **absent}, {"messages": ASK}, {"messages": ASK, "id": 17})
    first, second, numbered = (source[index] for index in range(3))
    assert first == dataclasses.replace(second, id=first.id, place=first.place) and first.id.endswith("own.jsonl:1")
    assert numbered.id == "17"
    for fields in ({"messages": [{**ASK[0], "question": None}]}, {"messages": [None]}, {"messages": None}, {"id": 1.5}):
        with pytest.raises(RecordError, match="own.jsonl:1: "):
            _source(tmp_path, {"messages": ASK, **fields})[0]


def test_subtitles_may_be_a_file_of_the_whole_video(tmp_path: Path) -> None:
    (tmp_path / "talk.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\none\n\n2\n00:00:03,000 --> 00:00:05,000\ntwo\n"
    )
    fields = {"video": "a.mp4", "messages": ASK, "subtitles": "talk.srt"}
    assert _source(tmp_path, fields)[0].subtitles == ((1.0, 2.0, "one"), (3.0, 5.0, "two"))
    assert _source(tmp_path, {**fields, "start": 2.5, "end": 4})[0].subtitles == ((0.5, 1.5, "two"),)
    for name, said in (("gone.vtt", "gone.vtt: no such file"), ("talk.ass", "must be in a file that ends in .srt")):
        with pytest.raises(RecordError, match=f"own.jsonl:1: .*{said}"):
            _source(tmp_path, {**fields, "subtitles": name})[0]
    assert _source(tmp_path, {**fields, "subtitles": "They talk."})[0].subtitles == "They talk."


@pytest.mark.parametrize("path", ["https://example.com/a.mp4", "s3://a/b.mp4", "file:///a.mp4"])
def test_addresses_are_not_read(tmp_path: Path, path: str) -> None:
    for fields in ({"video": path}, {"images": [path]}):
        with pytest.raises(RecordError, match="own.jsonl:1: .*:// is not read; download the file"):
            _source(tmp_path, {"messages": ASK, **fields})[0]


def test_a_file_has_parts_and_a_fingerprint(tmp_path: Path) -> None:
    whole = _source(tmp_path, *({"messages": ASK, "id": f"{n}"} for n in range(10)))
    part = JsonlSource(str(tmp_path / "own.jsonl"), "train[80%:]")
    assert [part[index].id for index in range(len(part))] == ["8", "9"] and part[0].place.endswith("own.jsonl:17")
    assert part.fingerprint == whole.fingerprint != _source(tmp_path, {"messages": ASK}).fingerprint


def _questions(folder: Path, *lines: Any) -> QuestionFile:
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return QuestionFile(str(folder / "q.jsonl"))


def test_questions_need_no_answers(tmp_path: Path) -> None:
    choice = {"question": "Which?", "options": ["a", "b"], "style": "video_multiple_choice"}
    source = _questions(
        tmp_path,
        {"video": "a.mp4", "question": "What?", "id": "one"},
        {"video": "a.mp4", "messages": [{"question": "What?"}, choice]},
        {"images": ["a.png"], **choice},
        {"messages": ASK},
    )
    one, two, three, four = (source[index] for index in range(4))
    assert (one.id, one.video, one.messages[0].question) == ("one", str(tmp_path / "a.mp4"), "What?")
    assert [message.question for message in two.messages] == ["What?", "Which?"]
    assert (three.images, three.messages) == ((str(tmp_path / "a.png"),), two.messages[1:])
    assert four.messages[0].answer == ASK[0]["answer"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "What?", "messages": ASK}, "has `question` and `messages`; give one of them"),
        ({"video": "a.mp4"}, "needs `messages`"),
        ({"question": " "}, "`question` is empty"),
        ({"question": 3}, "`question`"),
        ({"options": ["a"]}, "every message needs the text `question`"),
        ({"question": "What?", "vidoe": "a.mp4"}, "unknown field vidoe"),
        ({"messages": [{"q": "What?"}]}, "unknown field q"),
        ({"messages": "What?"}, "needs `messages`"),
    ],
)
def test_questions_that_cannot_be_asked_name_their_line(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=f"q.jsonl:1: .*{said}"):
        _questions(tmp_path, line)[0]


def test_a_file_in_a_bucket_names_what_lies_there(gcs: FakeGcs) -> None:
    fields = {"video": "clips/a.mp4", "images": ["gs://other/b.png"], "subtitles": "a.srt", "messages": ASK}
    lines = [fields, {"video": "clips/none.mp4", "messages": ASK}, {"video": "clips/no.mp4", "messages": ASK}]
    gcs.put("jsonl/my/own.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode(), {})
    gcs.put("jsonl/my/clips/a.mp4", b"film", {})
    gcs.put("jsonl/my/clips/none.mp4", b"", {})
    gcs.put("other/b.png", b"picture", {})
    gcs.put("jsonl/my/a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", {})
    source = JsonlSource("gs://jsonl/my/own.jsonl")
    record = source[0]
    assert (record.video, record.images) == (b"film", (b"picture",)) and record.subtitles == ((1.0, 2.0, "Hello"),)
    for index, said in ((1, "clips/none.mp4: is empty"), (2, "clips/no.mp4: no such file")):
        with pytest.raises(RecordError, match=f"own.jsonl:{index + 1}: gs://jsonl/my/{said}"):
            source[index]
    assert content_digest("gs://other/b.png") == content_digest(b"picture")
