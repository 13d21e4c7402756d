"""Files of a few kilobytes that declare millions of samples."""

import io
import time

import pytest

from sttts_jax.data.mp4_samples import declares_too_many
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode
from tests.data.films import film, numbered

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def _with(data: bytes, box: bytes, *numbers: tuple[int, int]) -> bytes:
    """With 32-bit numbers at places of the body of the first such box."""
    changed, at = bytearray(data), data.index(box) + 4
    for place, number in numbers:
        changed[at + place : at + place + 4] = number.to_bytes(4)
    return bytes(changed)


@pytest.mark.parametrize("count", [100_000, 30_000_000, 2**32 - 1])
def test_samples_without_bytes_are_refused(count: int) -> None:
    whole, fragments = film(numbered(24)), film(numbered(24), muxer=FRAGMENTS)
    one_size = _with(_with(_with(whole, b"stsz", (4, 1), (8, count)), b"stts", (8, count)), b"stsc", (12, count))
    for data in (one_size, _with(fragments, b"trun", (0, 1), (4, count))):
        started = time.perf_counter()
        with pytest.raises(VideoError, match="^x: declares more frames and sounds than it has bytes"):
            decode(data, FrameSampling(2), size=(8, 8), name="x")
        assert time.perf_counter() - started < 1


def test_other_files_are_left_to_ffmpeg() -> None:
    data = film(numbered(24))
    for fine in (data, film(numbered(24), muxer=FRAGMENTS), film(numbered(3), "matroska"), b"", b"1234", bytes(100)):
        assert not declares_too_many(io.BytesIO(fine))
    # Sound of old QuickTime files: a million waves of one tick, coded in less than a byte each.
    sound = _with(data, b"stts", (4, 1), (8, 1_000_000), (12, 1))
    sound = _with(sound, b"stsz", (4, 1), (8, 1_000_000))
    assert declares_too_many(io.BytesIO(sound))
    assert not declares_too_many(io.BytesIO(sound.replace(b"vide", b"soun")))
    at = data.index(b"moov") - 4
    for size in (0, 1, 7, 2**32 - 1):  # sizes that lead nowhere, or beyond the end
        assert not declares_too_many(io.BytesIO(data[:at] + size.to_bytes(4) + data[at + 4 :]))
