"""Records as a person looks at them."""

from pathlib import Path

import numpy as np

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


def test_records_are_read_when_asked_for() -> None:
    seen = preview([Record(id="a", video=None, messages=(Message("Q", "B", "user_qa"),))], range(5), FrameSampling(2))
    assert next(seen).usable
