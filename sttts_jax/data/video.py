"""Video files to frames, by the times at which frames are truly on screen.

    video = decode("clip.mp4", FrameSampling(max_frames=64, max_fps=2), size=(378, 378))
    video.frames     # uint8 [F, 378, 378, 3]
    video.times      # float64 [F], seconds from the start of the clip

Whatever the length of the file, memory holds the sampled frames, one decoded picture and eight bytes a packet.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from sttts_jax.data import video_stream
from sttts_jax.data.files import source_name
from sttts_jax.data.image import resize
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video_stream import Timeline, VideoError

__all__ = ["Video", "VideoError", "decode", "display_size", "probe"]

EDGE = 1e-6  # requested times keep this far from both ends of the stream, seconds
DISPLAY = 960  # the longer side of a shown frame, pixels at most
ROUNDING = 1e-7  # a time this little before a frame appears means that frame


@dataclass(frozen=True)
class Video:
    """What was sampled of a clip: F frames, the time of each, and the clip's length."""

    frames: np.ndarray  # uint8 [F, h, w, 3]
    times: np.ndarray  # float64 [F], from the clip's start, ascending
    duration: float  # of the clip, seconds


def decode(
    source: str | Path | bytes,
    sampling: FrameSampling,
    *,
    size: tuple[int, int] | None,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
) -> Video:
    """The sampled frames of a file (path or its bytes), of its part [start, end) where given, in seconds of playing
    time.

    The rule "molmo2" takes what is on screen at `sampling.times`; "transformers" takes `sampling.indices` of the
    frames, and for their times the index over the mean frame rate, whatever the true ones are.

    The first real video stream is taken (no cover pictures), its display matrix (rotation and mirror) applied. `size`
    is (height, width) or None for the stored size. `name` says in errors what the bytes are. Raises VideoError, one
    sentence with the name and the cause, for whatever is not a whole, playable video.
    """
    name = source_name(source, name)
    by_rule = {"molmo2": _by_time, "transformers": _by_index}[sampling.rule]

    def sampled(timeline: Timeline) -> Video:
        begin, duration = _clip(timeline, start, end, name)
        times, index = by_rule(timeline, begin, duration, sampling)
        return Video(_pictures(source, name, timeline, index, size), times, duration)

    timeline = probe(source, name)
    if timeline.ordered:
        # OutOfOrder: the packets' times are not what decodes, so frames are counted below instead.
        with contextlib.suppress(video_stream.OutOfOrder):
            return sampled(timeline)
    with video_stream.open_stream(source, name) as (container, stream):
        timeline = video_stream.count(container, stream, timeline, name)
    return sampled(timeline)


def probe(source: str | Path | bytes, name: str | None = None) -> Timeline:
    """Frame times and exact duration from the packets alone, nothing decoded. Raises VideoError."""
    name = source_name(source, name)
    with video_stream.open_stream(source, name) as (container, stream):
        return video_stream.scan(container, stream, name)


def display_size(video: str | Path | bytes, name: str, most: int = DISPLAY) -> tuple[int, int]:
    """(height, width) to show a video at: upright, with square pixels, no side above `most`. Raises VideoError."""
    with video_stream.open_stream(video, name) as (_, stream):
        stored = (stream.codec_context.height, stream.codec_context.width)
        pixel = float(stream.sample_aspect_ratio or 1) or 1.0
    upright = decode(video, FrameSampling(1), size=None, name=name).frames.shape[1:3]
    turned = upright == stored[::-1] and stored[0] != stored[1]
    height, width = (upright[0] * pixel, upright[1]) if turned else (upright[0], upright[1] * pixel)
    scale = min(1.0, most / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pictures(
    source: str | Path | bytes, name: str, timeline: Timeline, index: np.ndarray, size: tuple[int, int] | None
) -> np.ndarray:
    """The frames `index` int64 [F], ascending, as uint8 [F, h, w, 3]."""
    wanted, place = np.unique(index, return_inverse=True)
    pictures: list[np.ndarray] = []
    with video_stream.open_stream(source, name) as (container, stream):
        for frame in video_stream.fetch(container, stream, timeline, wanted, name):
            pictures.append(_picture(frame, size, name))
    if len({p.shape for p in pictures}) > 1:
        raise VideoError(f"{name}: the picture size changes within the video; give a size to resize to")
    return np.stack(pictures)[place]


def _by_time(
    timeline: Timeline, begin: float, duration: float, sampling: FrameSampling
) -> tuple[np.ndarray, np.ndarray]:
    """(times from the clip's start, indices of the frames on screen then)."""
    times = sampling.times(duration)
    seconds = timeline.seconds()
    first, last = seconds[0], seconds[0] + timeline.duration
    return times, _on_screen(seconds, np.clip(first + begin + times, first + EDGE, max(last - EDGE, first + EDGE)))


def _by_index(
    timeline: Timeline, begin: float, duration: float, sampling: FrameSampling
) -> tuple[np.ndarray, np.ndarray]:
    """(times as index over the mean rate, indices), of the frames that appear within the clip and of the one on screen
    where it starts.
    """
    seconds = timeline.seconds()
    first = int(_on_screen(seconds, seconds[:1] + begin)[0])
    total = max(int(np.searchsorted(seconds, seconds[0] + begin + duration - ROUNDING)) - first, 1)
    index = sampling.indices(total, duration)
    return index * (duration / total), first + index


def _on_screen(seconds: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames, which appear at `seconds`, that are to be seen at the times `at`."""
    return np.maximum(np.searchsorted(seconds, at + ROUNDING, side="right") - 1, 0)


def _clip(timeline: Timeline, start: float | None, end: float | None, name: str) -> tuple[float, float]:
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
