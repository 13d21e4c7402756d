"""Recordings joined to one file play one after the other; pictures may begin after the sound."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode, probe, probe_clip
from tests.data.films import film, numbered, read_number

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def _parts(count: int, container: str, codec: str, rate: int, frames: int = 30) -> list[bytes]:
    return [film(numbered(frames, frames * part), container, codec, rate=rate) for part in range(count)]


@pytest.mark.parametrize(
    ("container", "codec", "rate", "count"),
    [
        ("mpegts", "libx264", 10, 2),
        ("mpegts", "mpeg4", 10, 4),
        ("mpegts", "libx264", 1, 2),
        ("mpeg", "mpeg2video", 25, 3),
    ]
    + [("webm", "libvpx", 10, 2), ("matroska", "mpeg4", 10, 2)],
)
def test_joined_recordings_follow_each_other(container: str, codec: str, rate: int, count: int) -> None:
    """Their clocks start anew: every frame is there, in the order of the file, over the whole time."""
    parts = _parts(count, container, codec, rate)
    video = decode(b"".join(parts), FrameSampling(30 * count + 1), size=None)
    assert video.duration == pytest.approx(30 * count / rate, abs=0.2 / rate)
    numbers = np.asarray([read_number(frame) for frame in video.frames])
    assert np.abs(numbers[:-1] - np.arange(30 * count)).max() <= 1 and (np.diff(numbers) >= 0).all()
    assert decode(parts[0], FrameSampling(5), size=None).duration == pytest.approx(30 / rate, abs=0.2 / rate)


def test_a_clip_of_joined_recordings() -> None:
    data = b"".join(_parts(2, "mpegts", "libx264", 10))
    video = decode(data, FrameSampling(9, 2), size=None, start=2.5, end=4)
    assert [read_number(frame) for frame in video.frames] == [25, 30, 35, 40]
    video = decode(data, FrameSampling(9, 2, "transformers"), size=None)
    assert [read_number(frame) for frame in video.frames] == [0, 6, 13, 20, 26, 33, 40, 46, 53]


@pytest.mark.parametrize(("jump", "duration"), [(-40, 6.0), (95, 6.0), (3600, 6.0), (4, 7.0)])
def test_the_clock_of_a_broadcast_leaps(jump: int, duration: float) -> None:
    """By more than ten seconds it is another clock, as for ffmpeg; by less nothing was sent for a while."""
    starts = (50 if jump < 0 else 0, 50 + jump if jump < 0 else jump)  # of the two parts, 3 s each
    parts = [
        film(numbered(30, 30 * part), "mpegts", pts=[1000 * start + 100 * i for i in range(30)], options={"bf": "0"})
        for part, start in enumerate(starts)
    ]
    video = decode(b"".join(parts), FrameSampling(9, 1), size=None)
    assert video.duration == pytest.approx(duration, abs=0.11)
    numbers = [read_number(frame) for frame in video.frames]
    assert numbers[:6] == ([0, 10, 20, 30, 40, 50] if duration == 6 else [0, 10, 20, 29, 30, 40])


def test_slow_pictures_are_no_leap_elsewhere() -> None:
    """Containers of files keep one clock: a picture may stand for a minute."""
    video = decode(film(numbered(3), "matroska", pts=[0, 60_000, 61_000]), FrameSampling(99, 0.1), size=None)
    assert 61 <= video.duration <= 92 and [read_number(frame) for frame in video.frames[:7]] == [0, 0, 0, 0, 0, 0, 1]


def _with_sound(late: float, container: str, sound: float = 8.0) -> bytes:
    """Sound from 0 s on, 50 numbered pictures, ten a second, from `late` on."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        audio = output.add_stream("mp2" if container == "mpegts" else "aac", rate=48000)
        stream = output.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        silence = np.zeros((1, int(48000 * sound)), np.int16)
        heard = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        heard.rate, heard.pts = 48000, 0
        packets = [*audio.encode(heard), *audio.encode()]
        for number, pixels in enumerate(numbered(50)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(1000 * late) + 100 * number, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_one_zero_for_clip_and_stamps(container: str) -> None:
    """What a player shows at 2.0 s is the first picture, and it is stamped so."""
    data = _with_sound(2.0, container)
    video = decode(data, FrameSampling(8, 2), size=None, start=2.05, end=3.05)
    assert [read_number(frame) for frame in video.frames] == [0, 5, 10]
    assert video.times == pytest.approx([0, 0.5, 1], abs=0.03)
    video = decode(data, FrameSampling(8, 2), size=None, start=1.05, end=3.05)  # nearly a second without a picture
    assert video.times == pytest.approx([0.95, 1.45, 1.95, 2], abs=0.05)
    assert [read_number(frame) for frame in video.frames] == [0, 5, 10, 10]
    whole = decode(data, FrameSampling(99, 2), size=None)
    assert [read_number(frame) for frame in whole.frames] == [*range(0, 50, 5), 49]
    assert whole.times == pytest.approx([*np.arange(2, 7, 0.5), 7], abs=0.03)
    assert decode(data, FrameSampling(99, 2, "transformers"), size=None).times[:2] == pytest.approx([2, 2.5], abs=0.03)
    clip = probe_clip(data, start=1, end=3)
    assert (clip.ahead, clip.duration) == pytest.approx((1, 1), abs=0.03)
    with pytest.raises(VideoError, match=r"from 0 s to 1.5 s is empty or outside of .* shows nothing before 2.0\d\d s"):
        decode(data, FrameSampling(8, 2), size=None, end=1.5)


def test_a_film_that_starts_late_as_a_whole_starts_at_zero() -> None:
    """Without sound before it, a player begins with the first picture."""
    data = film(numbered(20), "mpegts", pts=[5000 + 100 * i for i in range(20)])
    assert probe(data).lead == 0 and probe_clip(data).ahead == 0
    assert [read_number(f) for f in decode(data, FrameSampling(9, 2), size=None, start=1).frames] == [10, 15, 19]
