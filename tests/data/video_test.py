"""Sampling times and decoding, on files made here."""

import io
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest

from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.video import VideoError, decode, probe
from sttts_jax.data.video_stream import orient
from tests.data.films import film, numbered, read_number


def _vfr(pts: list[int]) -> bytes:
    """A video whose frame i appears at pts[i] / 1000 seconds, with B frames."""
    return film(numbered(len(pts)), rate=25, pts=pts, options={"crf": "10", "bf": "2"})


@pytest.mark.parametrize("max_frames", [2, 5, 17, 50])
def test_the_frame_on_screen_is_taken(max_frames: int) -> None:
    rng = np.random.default_rng(max_frames)
    pts = np.cumsum(rng.integers(5, 300, 60))
    data = _vfr((pts - pts[0]).tolist())
    video = decode(data, FrameSampling(max_frames), size=None)
    seconds = probe(data).seconds()
    assert np.allclose(seconds, (pts - pts[0]) / 1000, atol=1e-3)
    asked = np.clip(video.times, 1e-6, video.duration - 1e-6)
    assert [read_number(f) for f in video.frames] == [int((seconds <= t + 1e-7).sum()) - 1 for t in asked]


def test_clip_times_start_at_the_clip() -> None:
    data = encode_mp4(numbered(100), 10)
    video = decode(data, FrameSampling(99, 2), size=None, start=3.0, end=5.2)
    assert video.times.tolist() == [0, 0.5, 1, 1.5, 2, pytest.approx(2.2)] and video.duration == pytest.approx(2.2)
    assert [read_number(f) for f in video.frames] == [30, 35, 40, 45, 50, 52]
    assert decode(data, FrameSampling(4, 2), size=None, start=9).duration == pytest.approx(1)
    assert decode(data, FrameSampling(4, 2), size=None, end=99).duration == pytest.approx(10)


def test_sampling_by_index_in_a_clip() -> None:
    data = encode_mp4(numbered(100), 10)
    sampling = FrameSampling(99, 2, "transformers")
    video = decode(data, sampling, size=None)
    assert video.times.tolist() == pytest.approx(np.arange(20) / 2)
    assert [read_number(f) for f in video.frames] == list(range(0, 100, 5))
    video = decode(data, sampling, size=None, start=3.0, end=5.2)  # 22 frames, int(4.4) of them
    assert [read_number(f) for f in video.frames] == [30, 35, 41, 46]
    assert video.times.tolist() == pytest.approx([0, 0.5, 1.1, 1.6]) and video.duration == pytest.approx(2.2)
    assert [read_number(f) for f in decode(data, sampling, size=None, start=9.97).frames] == [99]


def test_a_late_first_frame_is_time_zero() -> None:
    pts = [700 + 100 * i for i in range(20)]
    data = film(numbered(20), "matroska", pts=pts, options={"bf": "0"})
    video = decode(data, FrameSampling(9, 2), size=None)
    assert [read_number(f) for f in video.frames][:4] == [0, 5, 10, 15] and video.duration == pytest.approx(
        2.0, abs=0.11
    )


def test_path_and_bytes_agree_and_size_resizes(tmp_path: Path) -> None:
    data = encode_mp4(numbered(20), 8)
    (tmp_path / "a.mp4").write_bytes(data)
    one = decode(tmp_path / "a.mp4", FrameSampling(6, 4), size=(30, 20))
    two = decode(data, FrameSampling(6, 4), size=(30, 20))
    assert one.frames.shape == (6, 30, 20, 3) and np.array_equal(one.frames, two.frames)


def test_memory_does_not_grow_with_the_video() -> None:
    """800 pictures of 230 kB, four wanted."""
    still = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    data = encode_mp4(np.broadcast_to(still, (800, *still.shape)), 25)
    tracemalloc.start()
    decode(data, FrameSampling(4), size=(32, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0], [0, 1]], [[1, 2, 3], [4, 5, 6]]),
        ([[-1, 0], [0, -1]], [[6, 5, 4], [3, 2, 1]]),
        ([[-1, 0], [0, 1]], [[3, 2, 1], [6, 5, 4]]),  # mirror
        ([[0, 1], [-1, 0]], [[4, 1], [5, 2], [6, 3]]),  # a quarter turn clockwise
        ([[0, -1], [1, 0]], [[3, 6], [2, 5], [1, 4]]),
        ([[0, 1], [1, 0]], [[1, 4], [2, 5], [3, 6]]),  # turn and mirror
    ],
)
def test_display_matrix(matrix: list[list[int]], expected: list[list[int]]) -> None:
    full = np.zeros((3, 3), np.int32)
    full[:2, :2] = np.asarray(matrix) * 65536
    picture = np.asarray([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None]
    assert orient(picture, full, "x")[..., 0].tolist() == expected


def test_oblique_display_matrix_is_refused() -> None:
    oblique = np.asarray([[46341, 46341, 0], [-46341, 46341, 0], [0, 0, 1]], np.int32)
    with pytest.raises(VideoError, match="not a multiple of 90 degrees"):
        orient(np.zeros((2, 2, 3), np.uint8), oblique, "x")


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    whole = encode_mp4(numbered(100), 10)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video " * 50)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    cases = {
        tmp_path / "none.mp4": "none.mp4: no such file",
        tmp_path: "is not a file",
        tmp_path / "empty.mp4": "empty.mp4: is empty",
        tmp_path / "text.mp4": "text.mp4: cannot be opened as a video .Invalid data",
        tmp_path / "cut.mp4": "cut.mp4: cannot be opened as a video",
        b"": "is empty",
    }
    for source, message in cases.items():
        with pytest.raises(VideoError, match=message) as caught:
            decode(source, FrameSampling(4, 2), size=None)
        assert "\n" not in str(caught.value)
    for start, end in ((10, None), (5, 5), (-1, 3), (6, 2)):
        with pytest.raises(VideoError, match="the clip from .* is empty or outside of the video's 10.000 s"):
            decode(whole, FrameSampling(4, 2), size=None, start=start, end=end, name="x")


def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    """The index of a streamable mp4 comes first, so cutting the file leaves it readable."""
    file = str(tmp_path / "whole.mp4")
    noise = np.random.default_rng(1).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    with av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = Path(file).read_bytes()
    assert decode(data, FrameSampling(4, 2), size=None).duration == 6
    with pytest.raises(VideoError, match=r"is cut short, its header promises 6.00 s"):
        decode(data[: len(data) * 2 // 3], FrameSampling(4, 2), size=None)


def test_sound_alone_and_pictures_alone_are_no_videos() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="holds no video stream, only audio"):
        decode(file.getvalue(), FrameSampling(4, 2), size=None)
