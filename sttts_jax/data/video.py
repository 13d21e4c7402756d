"""Video files to frames, by the times at which frames are truly on screen.

    video = decode("clip.mp4", max_frames=64, max_fps=2, size=(378, 378))
    video.frames     # uint8 [F, 378, 378, 3]
    video.times      # float64 [F], seconds from the start of the clip

Sampling is Molmo2's "uniform, last frame included" rule, or that of its processor in transformers, which leaves out the
end. Whatever the length of the file, memory holds the sampled frames, one decoded picture and eight bytes a packet.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from sttts_jax.data import video_stream
from sttts_jax.data.config import SAMPLINGS
from sttts_jax.data.image import resize
from sttts_jax.data.video_stream import VideoError

__all__ = ["Video", "VideoError", "decode", "display_size", "probe", "sample_indices", "sample_times"]

EDGE = 1e-6  # requested times keep this far from both ends of the stream, seconds
DISPLAY = 960  # the longer side of a shown frame, pixels at most
ROUNDING = 1e-7  # a time this little before a frame appears means that frame


@dataclass(frozen=True)
class Video:
    frames: np.ndarray  # uint8 [F, h, w, 3]
    times: np.ndarray  # float64 [F], from the clip's start, ascending
    duration: float  # of the clip, seconds


def sample_times(duration: float, max_frames: int, max_fps: float | None) -> np.ndarray:
    """Sampling times in seconds, float64 [F], for a clip of `duration` seconds; the last one is `duration` itself.

    A grid of `max_fps` while that needs at most `max_frames` frames, else `max_frames` equal steps over [0, duration].
    0 s gives one time. A clip shorter than a step gives two times, which may show the same picture: nothing is
    deduplicated.
    """
    _refuse_nonsense(duration, max_frames, max_fps)
    if duration == 0:
        return np.zeros(1)
    if max_fps is None or (max_frames - 1) / max_fps < duration:
        return np.linspace(0, duration, max_frames)
    grid = np.arange(int(duration * max_fps) + 1) / max_fps
    return np.append(grid[grid < duration - 1e-9], duration)


def sample_indices(total: int, duration: float, max_frames: int, max_fps: float | None) -> np.ndarray:
    """Which of `total` frames in `duration` seconds transformers' Molmo2VideoProcessor takes, int64 [F], ascending.

    int(duration * max_fps) frames, but no more than `max_frames`, at equal steps from the first on, the end excluded; a
    video of at most `max_fps` gives `max_frames`, or all that it has. (Rounding there at times adds an index past the
    end, which cannot be read and is left out here.)
    """
    _refuse_nonsense(duration, max_frames, max_fps)
    wanted = max_frames
    if max_fps is not None and total > max_fps * duration:
        wanted = min(wanted, int(duration * max_fps))
    wanted = max(min(wanted, total), 1)
    # float32 as there, so that a step that is no binary fraction is cut to the same whole numbers.
    return (np.arange(wanted) * (total / wanted)).astype(np.float32).astype(np.int64)


def decode(
    source: str | Path | bytes,
    *,
    max_frames: int,
    max_fps: float | None,
    size: tuple[int, int] | None,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
    codec_threads: int = 1,
    sampling: str = "molmo2",
) -> Video:
    """The sampled frames of a file (path or its bytes), of its part [start, end) where given, in seconds of playing
    time.

    `sampling` "molmo2" takes what is on screen at `sample_times`; "transformers" takes `sample_indices` of the frames,
    and for their times the index over the mean frame rate, whatever the true ones are.

    The first real video stream is taken (no cover pictures), its display matrix (rotation and mirror) applied. `size`
    is (height, width) or None for the stored size. `name` says in errors what the bytes are. Raises VideoError, one
    sentence with the name and the cause, for whatever is not a whole, playable video.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} is unknown; choose one of {', '.join(SAMPLINGS)}")
    wanted = _Wanted(max_frames, max_fps, start, end, sampling)
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        timeline = video_stream.scan(container, stream, name)
    if timeline.ordered:
        # OutOfOrder: the packets' times are not what decodes, so frames are counted below instead.
        with contextlib.suppress(video_stream.OutOfOrder):
            return _sample(source, name, timeline, wanted, size, codec_threads)
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        timeline = video_stream.count(container, stream, timeline, name)
    return _sample(source, name, timeline, wanted, size, codec_threads)


def probe(source: str | Path | bytes, name: str | None = None) -> video_stream.Timeline:
    """Frame times and exact duration from the packets alone, nothing decoded. Raises VideoError."""
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    with video_stream.open_stream(source, name, 1) as (container, stream):
        return video_stream.scan(container, stream, name)


def display_size(video: str | Path | bytes, name: str, most: int = DISPLAY) -> tuple[int, int]:
    """(height, width) to show a video at: upright, with square pixels, no side above `most`. Raises VideoError."""
    with video_stream.open_stream(video, name, 1) as (_, stream):
        stored = (stream.codec_context.height, stream.codec_context.width)
        pixel = float(stream.sample_aspect_ratio or 1) or 1.0
    upright = decode(video, max_frames=1, max_fps=None, size=None, name=name).frames.shape[1:3]
    turned = upright == stored[::-1] and stored[0] != stored[1]
    height, width = (upright[0] * pixel, upright[1]) if turned else (upright[0], upright[1] * pixel)
    scale = min(1.0, most / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class _Wanted(NamedTuple):
    """How `decode` is to sample."""

    max_frames: int
    max_fps: float | None
    start: float | None
    end: float | None
    sampling: str


def _sample(
    source: str | Path | bytes,
    name: str,
    timeline: video_stream.Timeline,
    asked: _Wanted,
    size: tuple[int, int] | None,
    codec_threads: int,
) -> Video:
    begin, duration = _clip(timeline, asked.start, asked.end, name)
    choose = _by_time if asked.sampling == "molmo2" else _by_index
    times, index = choose(timeline, begin, duration, asked.max_frames, asked.max_fps)
    wanted, place = np.unique(index, return_inverse=True)
    pictures: list[np.ndarray] = []
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        for frame in video_stream.fetch(container, stream, timeline, wanted, name):
            pictures.append(_picture(frame, size, name))
    if len({p.shape for p in pictures}) > 1:
        raise VideoError(f"{name}: the picture size changes within the video; give a size to resize to")
    return Video(np.stack(pictures)[place], times, duration)


def _by_time(
    timeline: video_stream.Timeline, begin: float, duration: float, max_frames: int, max_fps: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(times from the clip's start, indices of the frames on screen then)."""
    times = sample_times(duration, max_frames, max_fps)
    seconds = timeline.seconds()
    first, last = seconds[0], seconds[0] + timeline.duration
    return times, _on_screen(seconds, np.clip(first + begin + times, first + EDGE, max(last - EDGE, first + EDGE)))


def _by_index(
    timeline: video_stream.Timeline, begin: float, duration: float, max_frames: int, max_fps: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(times as index over the mean rate, indices), of the frames that appear within the clip and of the one on screen
    where it starts.
    """
    seconds = timeline.seconds()
    first = int(_on_screen(seconds, seconds[:1] + begin)[0])
    total = max(int(np.searchsorted(seconds, seconds[0] + begin + duration - ROUNDING)) - first, 1)
    index = sample_indices(total, duration, max_frames, max_fps)
    return index * (duration / total), first + index


def _on_screen(seconds: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames, which appear at `seconds`, that are to be seen at the times `at`."""
    return np.maximum(np.searchsorted(seconds, at + ROUNDING, side="right") - 1, 0)


def _refuse_nonsense(duration: float, max_frames: int, max_fps: float | None) -> None:
    if max_frames < 1 or (max_fps is not None and max_fps <= 0) or not 0 <= duration < float("inf"):
        raise ValueError(
            f"cannot sample duration={duration} with max_frames={max_frames}, max_fps={max_fps}: give positive numbers"
        )


def _clip(timeline: video_stream.Timeline, start: float | None, end: float | None, name: str) -> tuple[float, float]:
    """(offset of the clip from the first frame, its duration), seconds."""
    if start is None and end is None:
        return 0.0, timeline.duration
    begin = 0.0 if start is None else start
    finish = timeline.duration if end is None else min(end, timeline.duration)
    if begin < 0 or begin >= timeline.duration or begin >= finish:
        raise VideoError(
            f"{name}: the clip from {begin:g} s to {'the end' if end is None else f'{end:g} s'} is empty or outside of "
            f"the video's {timeline.duration:.3f} s"
        )
    return begin, finish - begin


def _picture(frame: av.VideoFrame, size: tuple[int, int] | None, name: str) -> np.ndarray:
    picture = video_stream.orient(frame.to_ndarray(format="rgb24"), video_stream.display_matrix(frame), name)
    return np.ascontiguousarray(picture) if size is None else resize(picture, size)
