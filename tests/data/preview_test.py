"""Records as a person looks at them."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from sttts_jax.data.preview import preview
from sttts_jax.data.record import Message, Record
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4


def test_good_records_are_shown_and_bad_ones_named(tmp_path: Path) -> None:
    video = encode_mp4(np.zeros((8, 16, 32, 3), np.uint8), 8)
    records = [
        Record(id="good", video=video, messages=(Message("Q\nR", "B", "user_qa"),)),
        Record(id="text", video=None, messages=(Message("Q", "B", "user_qa"),)),
        Record(id="gone", video=str(tmp_path / "gone.mp4"), messages=(Message("Q", "B", "user_qa"),)),
        Record(id="wrong", video=video, messages=(Message("Q", "C", "video_multiple_choice", ("A", "B")),)),
    ]
    good, text, gone, wrong = preview(records, range(4), FrameSampling(2))
    assert good.frames is not None and good.frames.shape == (2, 16, 32, 3)
    first, second, third = good.text.splitlines()
    assert first == "[0] good" and "32 x 16, 2 frames at 0.0 " in second
    assert "Q | R  ->  B" in third
    assert text.usable and text.frames is None and len(text.text.splitlines()) == 2
    for seen, index in ((gone, 2), (wrong, 3)):
        assert not seen.usable and seen.frames is None and seen.text.startswith(f"[{index}] cannot be used: ")
    assert "none of the options" in wrong.text


def test_all_that_the_model_reads_is_shown(tmp_path: Path) -> None:
    """Clip, images, subtitles near a frame, options, further turns; and, in brackets, what only scoring reads."""
    video = encode_mp4(np.zeros((80, 16, 32, 3), np.uint8), 8)
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(tmp_path / "a.png")
    messages = (
        Message(
            "Which?", "b", "video_multiple_choice", ("a", "b"), follow_ups=(("Sure?\nReally?", "Yes"),), weight=0.5
        ),
        Message("What?", "b", "video_short_answer", ("a", "b")),
    )
    lines = ((0.0, 0.5, "first"), (3.0, 3.5, "between"), (6.0, 7.0, "last"))
    record = Record("r", video, messages, start=1, end=7, subtitles=lines, images=(str(tmp_path / "a.png"),))
    (seen,) = preview([record], range(1), FrameSampling(2))
    assert seen.usable and [line.strip() for line in seen.text.splitlines()] == [
        "[0] r",
        "image 1: 50 x 20",
        "6.00 s from 1 s on, 32 x 16, 2 frames at 0.0 6.0 s",
        "subtitle, 2 of 3 lines: near a frame",
        "0.0 - 0.5 first",
        "6.0 - 7.0 last",
        "video_multiple_choice: Which? | Only return the correct answer option. | A. a | B. b  ->  B. b  [weight 0.5]",
        "then: Sure? | Really?  ->  Yes",
        "video_short_answer: video_short_answer: What?  ->  b  [scored against a, b]",
    ]
    plain = Record("p", None, (Message("Q", "A", "user_qa"),), subtitles="all that\nis said")
    bad = [
        Record("i", None, plain.messages, images=(str(tmp_path / "b.png"),)),
        Record("s", None, plain.messages, subtitles="<im_patch>"),
        Record("f", None, (Message("Q", "A", "user_qa", follow_ups=(("<|im_end|>", "A"),)),)),
    ]
    good, *others = preview([plain, *bad], range(4), FrameSampling(2))
    assert "subtitle\n      all that\n      is said" in good.text
    said = ["b.png: no such file", "the text 'subtitle.n<im_patch>' contains", "the text '<.im_end.>' contains"]
    for seen, message in zip(others, said, strict=True):
        assert not seen.usable and re.search(message, seen.text)


def test_records_are_read_when_asked_for() -> None:
    seen = preview([Record(id="a", video=None, messages=(Message("Q", "B", "user_qa"),))], range(5), FrameSampling(2))
    assert next(seen).usable
