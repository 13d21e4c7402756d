"""One video stream through PyAV: opening, its exact timeline, and fetching chosen frames with bounded memory.

Two ways to reach a frame:
- by time, where packets carry the display time of their frame (nearly all files): seek to key frames, decode forward;
- by count, where they do not (AVI has no display times; a decoder may hand out frames the packets do not announce):
  decode everything, once to count, once to fetch. Decoders emit frames in display order, so frame i is shown at the
  i-th smallest time.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sttts_jax.data.files import existing_file
from sttts_jax.data.record import RecordError

MISSING_SHARE = 0.1  # a file whose packets end this share, and this many seconds,
MISSING_SECONDS = 1.0  # before its header says is cut short
WITHOUT_DISPLAY_TIMES = {"avi"}


class VideoError(RecordError):
    """A file that cannot be used as a video: one sentence, the file's name first."""


class OutOfOrder(Exception):
    """The decoder's frames do not follow the packets' display times."""


@dataclass(frozen=True)
class Timeline:
    """When each frame of a stream appears."""

    pts: np.ndarray  # int64 [frames], ascending, in units of time_base
    keys: np.ndarray  # int64, display times of the key frames, ascending
    end: int  # when the last frame disappears
    time_base: Fraction
    ordered: bool  # decoding yields exactly these times: frames may be found by time

    @property
    def duration(self) -> float:
        return float((self.end - int(self.pts[0])) * self.time_base)

    def seconds(self) -> np.ndarray:
        """float64 [frames]"""
        return self.pts * self.time_base.numerator / self.time_base.denominator


@contextmanager
def open_stream(source: str | Path | bytes, name: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream that is not a cover picture. FFmpeg's errors inside the block become
    VideoError.
    """
    if isinstance(source, bytes):
        if not source:
            raise VideoError(f"{name}: is empty")
        file: str | io.BytesIO = io.BytesIO(source)
    else:
        file = str(existing_file(source, name, VideoError))
    try:
        container = av.open(file)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: cannot be opened as a video ({_cause(error)}); it is damaged, cut short or of another kind"
        ) from error
    with container:
        stream = _first_video(container, name)
        stream.codec_context.thread_count = 1  # the pipeline decodes several videos at once instead
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise VideoError(f"{name}: is damaged, decoding stopped ({_cause(error)})") from error


def scan(container: av.container.InputContainer, stream: av.VideoStream, name: str) -> Timeline:
    """The timeline from the packets, nothing decoded. Raises VideoError for a file that its header says is longer."""
    pts, keys, furthest, untimed = [], [], Fraction(0), 0
    end, last_length = None, 0
    for packet in container.demux():
        if packet.size == 0 and packet.dts is None:
            continue  # the flush packet
        if packet.pts is not None and packet.time_base:
            furthest = max(furthest, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream_index != stream.index or packet.is_discard:
            continue
        if packet.pts is None:
            untimed += 1
            continue
        pts.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        if end is None or packet.pts + (packet.duration or 0) >= end:
            end, last_length = packet.pts + (packet.duration or 0), packet.duration or 0
    if not pts and not untimed:
        raise VideoError(f"{name}: its video stream holds no frames")
    times = np.unique(np.asarray(pts, np.int64))
    if len(times) <= 1 and not untimed and not last_length:
        raise VideoError(f"{name}: its only frame has no duration, so it is a picture and not a video")
    base = stream.time_base or Fraction(1, av.time_base)
    ordered = not untimed and len(times) == len(pts) and container.format.name not in WITHOUT_DISPLAY_TIMES
    if pts:
        end = _end(times, end, last_length)
        _refuse_truncated(container, stream, Fraction(end - int(times[0])) * base, furthest, name)
    return Timeline(times, np.unique(np.asarray(keys, np.int64)), end or 0, base, ordered)


def count(container: av.container.InputContainer, stream: av.VideoStream, packets: Timeline, name: str) -> Timeline:
    """The timeline from decoding every frame and keeping none."""
    pts, length = [], 0
    for frame in container.decode(stream):
        at = frame.pts if frame.pts is not None else frame.dts
        if at is None:
            raise VideoError(f"{name}: its frames carry no times; convert it to a container that has them, such as mp4")
        pts.append(at)
        length = frame.duration or 0
    if not pts:
        raise VideoError(f"{name}: none of its frames could be decoded")
    times = np.sort(np.asarray(pts, np.int64))
    end = _end(times, int(times[-1]) + length, length)
    seconds, promised = float((end - times[0]) * packets.time_base), packets.duration if len(packets.pts) else 0.0
    if promised - seconds > max(MISSING_SECONDS, MISSING_SHARE * promised):
        raise VideoError(f"{name}: only {seconds:.2f} s of its {promised:.2f} s can be decoded; the file is damaged")
    return Timeline(times, packets.keys, end, packets.time_base, ordered=False)


def fetch(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, wanted: np.ndarray, name: str
) -> Iterator[av.VideoFrame]:
    """The frames of ascending indices `wanted`. Raises OutOfOrder where an ordered timeline turns out not to be."""
    if timeline.ordered:
        yield from _fetch_by_time(container, stream, timeline, [int(timeline.pts[i]) for i in wanted])
        return
    left = iter(int(i) for i in wanted)
    target = next(left)
    for index, frame in enumerate(container.decode(stream)):
        if index != target:
            continue
        yield frame
        target = next(left, -1)
        if target < 0:
            return
    raise VideoError(f"{name}: decoding it twice gave different numbers of frames; the file is damaged")


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """int32 [3, 3], or None where the frame is shown as it is stored."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def orient(picture: np.ndarray, matrix: np.ndarray | None, name: str) -> np.ndarray:
    """Applies rotation by right angles and mirroring: [h, w, 3] -> [h, w, 3] or [w, h, 3].

    A display matrix sends the point (x, y) to (a x + c y, b x + d y), rows of the matrix being (a, b, .) and (c, d, .).
    """
    if matrix is None:
        return picture
    (a, b), (c, d) = np.sign(np.rint(matrix[:2, :2] / 65536)).astype(int)
    if sorted((abs(a * d), abs(b * c))) != [0, 1] or abs(a) + abs(b) + abs(c) + abs(d) != 2:
        raise VideoError(
            f"{name}: is to be shown rotated by an angle that is not a multiple of 90 degrees; re-encode it upright"
        )
    if a:
        flip_x, flip_y = a < 0, d < 0
    else:
        picture = picture.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _fetch_by_time(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, targets: list[int]
) -> Iterator[av.VideoFrame]:
    frames: Iterator[av.VideoFrame] | None = None
    frame: av.VideoFrame | None = None
    for target in targets:
        key = _key_before(timeline, target)
        if frames is None or (frame is not None and key > frame.pts):
            frames, frame = _decoded_from(container, stream, timeline, key), None
        while frame is None or frame.pts < target:
            frame = _following(frames, frame)
        if frame.pts != target:
            raise OutOfOrder
        yield frame


def _key_before(timeline: Timeline, target: int) -> int:
    """When the key frame appears from which the frame at `target` can be decoded."""
    if not len(timeline.keys):
        return int(timeline.pts[0])
    return int(timeline.keys[np.searchsorted(timeline.keys, target, side="right") - 1])


def _decoded_from(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline, key: int
) -> Iterator[av.VideoFrame]:
    if key > timeline.pts[0]:
        container.seek(key, stream=stream)
    return container.decode(stream)


def _following(frames: Iterator[av.VideoFrame], frame: av.VideoFrame | None) -> av.VideoFrame:
    """The next frame, which must be a later one."""
    following = next(frames, None)
    if following is None or following.pts is None or (frame is not None and following.pts <= frame.pts):
        raise OutOfOrder
    return following


def _first_video(container: av.container.InputContainer, name: str) -> av.VideoStream:
    if not container.streams:
        raise VideoError(f"{name}: holds no streams at all")
    cover = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & cover]
    if not videos:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams}))
        raise VideoError(f"{name}: holds no video stream, only {kinds}")
    if videos[0].codec_context is None:
        raise VideoError(f"{name}: is coded in a way that this FFmpeg cannot decode; convert it to H.264")
    return videos[0]


def _end(times: np.ndarray, end: int | None, last_length: int) -> int:
    """When the last frame disappears; a container that does not say gets the usual step between frames."""
    if last_length or len(times) < 2:
        return int(times[-1]) if end is None else end
    return int(times[-1]) + int(np.median(np.diff(times)))


def _refuse_truncated(
    container: av.container.InputContainer, stream: av.VideoStream, seconds: Fraction, furthest: Fraction, name: str
) -> None:
    if stream.duration:
        promised, found = stream.duration * stream.time_base, seconds
    elif container.duration:
        promised, found = Fraction(container.duration, av.time_base), furthest
    else:
        return
    if promised - found > max(MISSING_SECONDS, MISSING_SHARE * promised):
        raise VideoError(
            f"{name}: is cut short, its header promises {float(promised):.2f} s and the file holds {float(found):.2f} s"
        )


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
