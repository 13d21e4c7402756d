"""Video files to frames, by the times at which frames are truly on screen.

    video = decode("clip.mp4", max_frames=64, max_fps=2, size=(378, 378))
    video.frames     # uint8 [F, 378, 378, 3]
    video.times      # float64 [F], seconds from the start of the clip

Sampling is Molmo2's "uniform, last frame included" rule. Whatever the length of the file, memory holds the sampled
frames, one decoded picture and eight bytes a packet.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sttts_jax.data import video_stream
from sttts_jax.data.image import resize
from sttts_jax.data.video_stream import VideoError

__all__ = ["Video", "VideoError", "decode", "probe", "sample_times"]

EDGE = 1e-6  # requested times keep this far from both ends of the stream, seconds
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
    if max_frames < 1 or (max_fps is not None and max_fps <= 0) or not 0 <= duration < float("inf"):
        raise ValueError(
            f"cannot sample duration={duration} with max_frames={max_frames}, max_fps={max_fps}: give positive numbers"
        )
    if duration == 0:
        return np.zeros(1)
    if max_fps is None or (max_frames - 1) / max_fps < duration:
        return np.linspace(0, duration, max_frames)
    grid = np.arange(int(duration * max_fps) + 1) / max_fps
    return np.append(grid[grid < duration - 1e-9], duration)


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
) -> Video:
    """The sampled frames of a file (path or its bytes), of its part [start, end) where given, in seconds of playing
    time.

    The first real video stream is taken (no cover pictures), its display matrix (rotation and mirror) applied. `size`
    is (height, width) or None for the stored size. `name` says in errors what the bytes are. Raises VideoError, one
    sentence with the name and the cause, for whatever is not a whole, playable video.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        timeline = video_stream.scan(container, stream, name)
    if timeline.ordered:
        # OutOfOrder: the packets' times are not what decodes, so frames are counted below instead.
        with contextlib.suppress(video_stream.OutOfOrder):
            return _sample(source, name, timeline, max_frames, max_fps, size, start, end, codec_threads)
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        timeline = video_stream.count(container, stream, timeline, name)
    return _sample(source, name, timeline, max_frames, max_fps, size, start, end, codec_threads)


def probe(source: str | Path | bytes, name: str | None = None) -> video_stream.Timeline:
    """Frame times and exact duration from the packets alone, nothing decoded. Raises VideoError."""
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    with video_stream.open_stream(source, name, 1) as (container, stream):
        return video_stream.scan(container, stream, name)


def _sample(
    source: str | Path | bytes,
    name: str,
    timeline: video_stream.Timeline,
    max_frames: int,
    max_fps: float | None,
    size: tuple[int, int] | None,
    start: float | None,
    end: float | None,
    codec_threads: int,
) -> Video:
    begin, duration = _clip(timeline, start, end, name)
    times = sample_times(duration, max_frames, max_fps)
    seconds = timeline.seconds()
    first, last = seconds[0], seconds[0] + timeline.duration
    asked = np.clip(first + begin + times, first + EDGE, max(last - EDGE, first + EDGE))
    index = np.maximum(np.searchsorted(seconds, asked + ROUNDING, side="right") - 1, 0)
    wanted, place = np.unique(index, return_inverse=True)
    pictures: list[np.ndarray] = []
    with video_stream.open_stream(source, name, codec_threads) as (container, stream):
        for frame in video_stream.fetch(container, stream, timeline, wanted, name):
            pictures.append(_picture(frame, size, name))
    if len({p.shape for p in pictures}) > 1:
        raise VideoError(f"{name}: the picture size changes within the video; give a size to resize to")
    return Video(np.stack(pictures)[place], times, duration)


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
