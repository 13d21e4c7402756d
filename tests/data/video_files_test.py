"""Decoding of real files of many containers and codecs, each with a trap. Skipped where they are not at hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode, probe
from sttts_jax.data.video_stream import display_matrix, orient

BROKEN = {
    "audio_only.mp4": "holds no video stream, only audio",
    "truncated_silent.mp4": "is cut short, its header promises 35.23 s and the file holds 0.50 s",
    "one_frame_no_pts_8x8.webm": "its only frame has no duration, so it is a picture and not a video",
    "no_streams.mp4": "holds no streams at all",
}
PLAYABLE = [
    *("sam2_cups_shell_game.mp4", "ucf101_SoccerJuggling_g23_c01.avi", "hmdb51_RATRACE_wave_goo_37.avi"),
    *("kinetics_SOX5yA1l24A_scene_cuts.mp4", "bikes_scene_cuts.mp4", "flipping_a_pancake.mkv"),
    *("face_static_avgrate1000.mkv", "rabbit320_vp8.webm", "bear_vp9_odd_161x121.webm", "av1_testsrc.mkv"),
    *("hevc10bit_testsrc_counter.mp4", "frame_counter_1080p_10fps.mp4", "drone_station_60fps.mp4"),
    *("cursed_vfr_screenrec.mp4", "rotated_90_3frames.mov", "rotated_180_3frames.mov"),
    *("fragmented_rotated_bbb.mp4", "edit_list_66x50.mov", "sar_2x1_testsrc.mp4", "no_duration_vp9.webm"),
    *("avi_dropped_frame.avi", "rotate_and_reflect.mp4"),
]


@pytest.fixture(scope="module")
def facts(real_files: Path) -> dict[str, Any]:
    return {entry["file"]: entry["probe"] for entry in json.loads((real_files / "videos" / "PROBE.json").read_text())}


def _all_frames(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        yield from container.decode(container.streams.video[0])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(real_files: Path, name: str) -> None:
    path = real_files / "videos" / name
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match=BROKEN[name]):
            decode(source, FrameSampling(8, 2), size=(32, 32))


@pytest.mark.parametrize("name", PLAYABLE)
def test_frames_are_those_on_screen(real_files: Path, facts: dict[str, Any], name: str) -> None:
    """Against decoding the whole file in order, at the times an independent probe found."""
    path = real_files / "videos" / name
    video = decode(path, FrameSampling(7), size=(24, 24))
    fact = facts[name]
    numerator, denominator = map(int, fact["time_base"].split("/"))
    seconds = np.sort(np.asarray(fact["pts"])) * numerator / denominator
    with av.open(str(path)) as container:
        start = container.start_time / av.time_base  # where players begin, with sound perhaps
    zero = seconds[0] if path.suffix == ".avi" else start  # the pictures of these AVIs begin with the file
    asked = np.minimum(zero + video.times, seconds[0] + video.duration - 1e-6)
    wanted = np.maximum((seconds[None] <= asked[:, None] + 1e-7).sum(1) - 1, 0)
    truth: dict[int, np.ndarray] = {}
    for index, frame in enumerate(_all_frames(path)):
        if index in wanted:
            picture = orient(frame.to_ndarray(format="rgb24"), display_matrix(frame), name)
            height, width = picture.shape[:2]
            truth[index] = picture[height // 2, width // 2]
    for index, picture in zip(wanted, decode(path, FrameSampling(7), size=None).frames, strict=True):
        assert np.array_equal(picture[picture.shape[0] // 2, picture.shape[1] // 2], truth[index]), index


@pytest.mark.parametrize(
    ("name", "duration"),
    [
        ("no_duration_vp9.webm", 4.938),  # no duration in the header
        ("face_static_avgrate1000.mkv", 0.968),  # begins at 0.067 s
        ("edit_list_66x50.mov", 82 / 60),  # 87 frames stored, 82 shown
        ("cursed_vfr_screenrec.mp4", 8.7255),
        ("avi_dropped_frame.avi", 4.0874),
        ("nasa_two_video_streams.mp4", 390 * 1001 / 30000),  # the larger of two video streams
    ],
)
def test_exact_duration(real_files: Path, name: str, duration: float) -> None:
    assert probe(real_files / "videos" / name).duration == pytest.approx(duration, abs=1e-3)


def test_display_matrices_are_applied(real_files: Path) -> None:
    shapes = {
        name: decode(real_files / "videos" / name, FrameSampling(1), size=None).frames.shape[1:3]
        for name in ("rotated_90_3frames.mov", "rotated_180_3frames.mov", "rotate_and_reflect.mp4")
    }
    assert shapes == {
        "rotated_90_3frames.mov": (568, 320),
        "rotated_180_3frames.mov": (320, 568),
        "rotate_and_reflect.mp4": (1080, 720),
    }


def test_burnt_in_background_changes_on_time(real_files: Path) -> None:
    """Frame = 11, PTS = 1.0 s is the first red one, Frame = 20 the last; then green."""
    path = real_files / "videos" / "frame_counter_1080p_10fps.mp4"
    video = decode(path, FrameSampling(31, 10), size=None)
    corner = video.frames[:, 20, 20].astype(int)
    names = ["grey" if np.ptp(c) < 40 else "red" if c.argmax() == 0 else "green" for c in corner]
    assert names[0] == "grey" and names[10:20] == ["red"] * 10 and names[20:] == ["green"] * 11
