"""The schema of a record: what every source yields, and what is refused instead of converted."""

from typing import Any

import numpy as np
import pytest

from sttts_jax.data.record import Message, Record, RecordError, join_names, naming
from sttts_jax.data.styles import EVALUATION_STYLES, STYLES, scores_options, shows_options, training_style

ASK = Message("Q", "A", "user_qa")
HALF = "half \ud83d"  # of a character: no UTF-8 can write it


def test_lists_become_tuples_and_numbers_floats() -> None:
    message = Message("Q", "a", "video_multiple_choice", ["a", "b"], follow_ups=[["And?", "b"]], weight=1)
    assert (message.options, message.follow_ups, message.weight) == (("a", "b"), (("And?", "b"),), 1.0)
    record = Record("r", "a.mp4", [message], start=1, end=np.float32(2.5), subtitles=[[0, 1, "hi"]], images=[b"x"])
    assert (record.start, record.end, record.subtitles) == (1.0, 2.5, ((0.0, 1.0, "hi"),))
    assert (record.messages, record.images, record.name) == ((message,), (b"x",), "r")
    assert Record("r", None, (ASK,), place="set.jsonl:3").name == "set.jsonl:3"
    assert Record("r", None, (ASK,), subtitles="plain text. And more").subtitles == "plain text. And more"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question": None}, "`question` must be a text, got None"),
        ({"question": " "}, "`question` is empty"),
        ({"question": HALF}, "`question` holds what is no character"),
        ({"answer": 5}, "`answer` must be a text, got 5"),
        ({"style": None}, "`style` must be a text, got None"),
        ({"style": "video_short_answr"}, "style 'video_short_answr' is unknown; did you mean 'video_short_answer'"),
        ({"style": "?"}, "style '.' is unknown; take 'user_qa'"),
        ({"family": ["a"]}, "`family` must be a text"),
        ({"options": "a cup"}, "`options` must be a list of texts, got 'a cup'"),
        ({"options": ["a", 3], "style": "video_multiple_choice"}, "`options` must be a text, got 3"),
        ({"options": ["a", ""], "style": "video_multiple_choice"}, "`options` is empty"),
        ({"options": [f"{i}" for i in range(27)], "style": "science_qa"}, "`options` are 27, and letters are 26"),
        ({"options": ["a", "b"]}, "`options` are not shown with the style 'user_qa'; take 'video_multiple_choice'"),
        ({"options": ["a", "b"], "style": "video_long_caption"}, "`options` are not shown"),
        ({"follow_ups": "more"}, "`follow_ups` must be a list of turns"),
        ({"follow_ups": [["And?"]]}, "`follow_ups` must be a list of .user, assistant"),
        ({"follow_ups": [["And?", None]]}, "`follow_ups` must be a text, got None"),
        ({"follow_ups": ["ab"]}, "`follow_ups` must be a list of .user, assistant"),
        ({"weight": "1"}, "`weight` must be a finite number, got '1'"),
        ({"weight": True}, "`weight` must be a finite number, got True"),
        ({"weight": float("nan")}, "`weight` must be a finite number, got nan"),
        ({"weight": float("inf")}, "`weight` must be a finite number, got inf"),
        ({"weight": 0}, "`weight` must be above 0"),
        ({"weight": -0.1}, "`weight` must be above 0"),
        ({"weight": 1e30}, "`weight` must be above 0, from 1e-06 to 1e.06, got 1e.30"),
    ],
)
def test_messages_of_other_kinds_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        Message(**{"question": "Q", "answer": "a", "style": "user_qa", **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": None}, "record: `id` must be a text"),
        ({"id": HALF}, "`id` holds what is no character"),
        ({"video": 5}, "r: `video` must be a path, got 5"),
        ({"video": ""}, "r: `video` must be a path, got ''"),
        ({"video": HALF}, "r: `video` holds what is no character"),
        ({"images": "a.png"}, "r: `images` must be a list of paths"),
        ({"images": ["a.png", None]}, "r: `images` must be a list of paths, got None"),
        ({"messages": ()}, "r: `messages` is empty"),
        ({"messages": ASK}, "r: `messages` must be a list"),
        ({"messages": ["Q"]}, "r: `messages` must hold questions"),
        ({"messages": (Message("Q", " ", "user_qa"),)}, "r: `answer` is empty"),
        ({"start": "1.0"}, "r: `start` must be a finite number, got '1.0'"),
        ({"start": False}, "r: `start` must be a finite number"),
        ({"start": float("nan")}, "r: `start` must be a finite number, got nan"),
        ({"end": 10**400}, "r: `end` must be a finite number, got 1000"),
        ({"end": 1e12}, "r: `end` must be seconds, at most 1e.09"),
        ({"start": -1}, "r: the clip from -1 s to the end is empty or negative"),
        ({"start": 3, "end": 3}, "r: the clip from 3 s to 3 s is empty"),
        ({"end": 0}, "r: the clip from 0 s to 0 s is empty"),
        ({"video": None, "start": 1}, "r: `start` and `end` cut a video, and there is none"),
        ({"video": None, "subtitles": ((0, 1, "a"),)}, "r: `subtitles` with times are of a video"),
        ({"subtitles": "talks/a.srt"}, "r: `subtitles` 'talks/a.srt' is the name of a file"),
        ({"subtitles": "a.TXT"}, "is the name of a file"),
        ({"subtitles": 5}, "r: `subtitles` must be a list of .start, end, text., or one text, got 5"),
        ({"subtitles": ("a",)}, "r: `subtitles` must be a text or a list of .start, end, text., got 'a'"),
        ({"subtitles": ((0, 1, None),)}, "r: `subtitles` must be a text, got None"),
        ({"subtitles": (("0", 1, "a"),)}, "r: `subtitles` must be a finite number, got '0'"),
        ({"subtitles": ((2, 1, "a"),)}, "r: `subtitles`: the line from 2 s ends at 1 s, before it starts"),
    ],
)
def test_records_of_other_kinds_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        Record(**{"id": "r", "video": "a.mp4", "messages": (ASK,), **fields})


def test_every_style_is_of_one_kind() -> None:
    assert set(EVALUATION_STYLES.values()) < STYLES
    assert not [style for style in STYLES if shows_options(style) and scores_options(style)]
    assert shows_options("video_eval_multiple_choice") and scores_options("eval_short_answer")
    assert training_style("user_qa") == "user_qa"


def test_names_of_a_file_are_joined() -> None:
    names = ["a.jsonl:1", "b (train), record 2", "a.jsonl:15", "a.jsonl:1", "b (train), record 3", "clip"]
    assert join_names(names) == "a.jsonl:1, 15; b (train), record 2, 3; clip"
    assert join_names([]) == ""


def test_a_name_is_said_once() -> None:
    class Special(RecordError):
        pass

    for text in ("gone", "r: gone", "r, image 1: gone"):
        with pytest.raises(Special) as caught, naming("r"):
            raise Special(text)
        assert str(caught.value) == ("r: gone" if text == "gone" else text)
