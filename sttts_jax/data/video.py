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
from sttts_jax.data.decode_limits import USUAL_LIMITS, DecodeLimits
from sttts_jax.data.files import source_name
from sttts_jax.data.image import resize
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video_file import VideoError, open_video
from sttts_jax.data.video_stream import Timeline

__all__ = ["Clip", "Video", "VideoError", "decode", "display_size", "probe", "probe_clip", "shown_size"]

EDGE = 1e-6  # requested times keep this far from both ends of the stream, seconds
DISPLAY = 960  # the longer side of a shown frame, pixels at most
ROUNDING = 1e-7  # a time this little before a frame appears means that frame


@dataclass(frozen=True)
class Video:
    """What was sampled of a clip: F frames, the time of each, and how long there is something to see."""

    frames: np.ndarray  # uint8 [F, h, w, 3]
    times: np.ndarray  # float64 [F], seconds from the clip's start, ascending
    duration: float  # of the clip's pictures, seconds


@dataclass(frozen=True)
class Clip:
    """The part of a clip, seconds, in which there is something to see: pictures may begin after the sound does."""

    ahead: float  # from the clip's start to its first picture
    duration: float  # from there on


def decode(
    source: str | Path | bytes,
    sampling: FrameSampling,
    *,
    size: tuple[int, int] | None,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
    limits: DecodeLimits = USUAL_LIMITS,
) -> Video:
    """The sampled frames of a file (path or its bytes), of its part [start, end) where given, in seconds of playing
    time: they count, as in a player, from where the first of all streams begins.

    The rule "molmo2" takes what is on screen at `sampling.times`; "transformers" takes `sampling.indices` of the
    frames, and for their times the index over the mean frame rate, whatever the true ones are.

    The stream that players show is taken (no cover pictures), its display matrix (rotation and mirror) applied. `size`
    is (height, width) or None for the stored size. `name` says in errors what the bytes are. Raises VideoError, one
    sentence with the name and the cause, for whatever is not a whole, playable video within the limits.
    """
    name = source_name(source, name)
    by_rule = {"molmo2": _by_time, "transformers": _by_index}[sampling.rule]

    def sampled(timeline: Timeline) -> Video:
        clip, begin = _clip(timeline, start, end, name)
        times, index = by_rule(timeline, begin, clip.duration, sampling)
        return Video(_pictures(source, name, timeline, index, size, limits), clip.ahead + times, clip.duration)

    timeline = probe(source, name, limits)
    if timeline.ordered:
        # OutOfOrder: the packets' times are not what decodes, so frames are counted below instead.
        with contextlib.suppress(video_stream.OutOfOrder):
            return sampled(timeline)
    with open_video(source, name, limits) as video:
        timeline = video_stream.count(video, timeline)
    return sampled(timeline)


def probe(source: str | Path | bytes, name: str | None = None, limits: DecodeLimits = USUAL_LIMITS) -> Timeline:
    """Frame times and exact duration from the packets alone, nothing decoded. Raises VideoError."""
    name = source_name(source, name)
    with open_video(source, name, limits) as video:
        return video_stream.scan(video)


def probe_clip(
    source: str | Path | bytes,
    *,
    start: float | None = None,
    end: float | None = None,
    name: str | None = None,
    limits: DecodeLimits = USUAL_LIMITS,
) -> Clip:
    """What `decode` would see of a clip, from the packets alone, nothing decoded. Raises VideoError."""
    name = source_name(source, name)
    return _clip(probe(source, name, limits), start, end, name)[0]


def display_size(
    source: str | Path | bytes, name: str, most: int = DISPLAY, limits: DecodeLimits = USUAL_LIMITS
) -> tuple[int, int]:
    """(height, width) to show a video at: `shown_size`, no side above `most`. Raises VideoError."""
    height, width = shown_size(source, name, limits)
    scale = min(1.0, most / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shown_size(source: str | Path | bytes, name: str, limits: DecodeLimits = USUAL_LIMITS) -> tuple[float, float]:
    """(height, width) of the first frame upright, in square pixels. Raises VideoError."""
    with open_video(source, name, limits) as video:
        stored = (video.stream.codec_context.height, video.stream.codec_context.width)
        pixel = float(video.stream.sample_aspect_ratio or 1) or 1.0
    upright = decode(source, FrameSampling(1), size=None, name=name, limits=limits).frames.shape[1:3]
    turned = upright == stored[::-1] and stored[0] != stored[1]
    return (upright[0] * pixel, upright[1]) if turned else (upright[0], upright[1] * pixel)


def _pictures(
    source: str | Path | bytes,
    name: str,
    timeline: Timeline,
    index: np.ndarray,
    size: tuple[int, int] | None,
    limits: DecodeLimits,
) -> np.ndarray:
    """The frames `index` int64 [F], ascending, as uint8 [F, h, w, 3]."""
    wanted, place = np.unique(index, return_inverse=True)
    with open_video(source, name, limits) as video:
        pictures = [_picture(frame, size, name) for frame in video_stream.fetch(video, timeline, wanted)]
        if len({p.shape for p in pictures}) > 1:
            raise VideoError(f"{name}: the picture size changes within the video; give a size to resize to")
        return np.stack(pictures)[place]


def _by_time(
    timeline: Timeline, begin: float, duration: float, sampling: FrameSampling
) -> tuple[np.ndarray, np.ndarray]:
    """(times from `begin` on, indices of the frames on screen then); `begin` counts from the first frame."""
    times = sampling.times(duration)
    seconds = timeline.seconds()
    first, last = seconds[0], seconds[0] + timeline.duration
    return times, _on_screen(seconds, np.clip(first + begin + times, first + EDGE, max(last - EDGE, first + EDGE)))


def _by_index(
    timeline: Timeline, begin: float, duration: float, sampling: FrameSampling
) -> tuple[np.ndarray, np.ndarray]:
    """(times as index over the mean rate, indices), of the frames that appear from `begin` on, within `duration`, and
    of the one on screen at `begin`, which counts from the first frame.
    """
    seconds = timeline.seconds()
    first = int(_on_screen(seconds, seconds[:1] + begin)[0])
    total = max(int(np.searchsorted(seconds, seconds[0] + begin + duration - ROUNDING)) - first, 1)
    index = sampling.indices(total, duration)
    return index * (duration / total), first + index


def _on_screen(seconds: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames, which appear at `seconds`, that are to be seen at the times `at`."""
    return np.maximum(np.searchsorted(seconds, at + ROUNDING, side="right") - 1, 0)


def _clip(timeline: Timeline, start: float | None, end: float | None, name: str) -> tuple[Clip, float]:
    """(The clip, seconds from the first frame of the stream to its own)."""
    first, last = timeline.lead, timeline.lead + timeline.duration
    begin, finish = max(start or 0.0, first), last if end is None else min(end, last)
    if start is None and end is None:
        return Clip(first, timeline.duration), 0.0
    if (start or 0.0) < 0 or not begin < finish:
        raise VideoError(
            f"{name}: the clip from {start or 0.0:g} s to {'the end' if end is None else f'{end:g} s'} is empty or "
            f"outside of the video's {last:.3f} s" + (f", which shows nothing before {first:.3f} s" if first else "")
        )
    return Clip(begin - (start or 0.0), finish - begin), begin - first


def _picture(frame: av.VideoFrame, size: tuple[int, int] | None, name: str) -> np.ndarray:
    picture = video_stream.orient(frame.to_ndarray(format="rgb24"), video_stream.display_matrix(frame), name)
    return np.ascontiguousarray(picture) if size is None else resize(picture, size)
