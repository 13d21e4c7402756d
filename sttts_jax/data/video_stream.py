"""One video stream: its exact timeline, and fetching chosen frames with bounded memory.

Two ways to reach a frame:
- by time, where packets carry the display time of their frame (nearly all files): seek to key frames, decode forward;
- by count, where they do not (AVI has no display times; a decoder may hand out frames the packets do not announce;
  recordings may be joined whose clocks start anew): decode everything, once to count, once to fetch. Decoders emit
  frames in display order, so frame i is shown at the i-th smallest time of the joined clock.
"""

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from sttts_jax.data.decode_work import DecodeWork
from sttts_jax.data.video_clock import JoinedClock
from sttts_jax.data.video_file import OpenVideo, VideoError

MISSING_SHARE = 0.1  # a file whose packets end this share, and this many seconds,
MISSING_SECONDS = 1.0  # before its header says is cut short
MOST_PACKETS = 20_000_000  # nearly four days at 60 frames a second; a small file can declare more
WITHOUT_DISPLAY_TIMES = {"avi"}
TICK = 1e-6  # of the container's clock, seconds


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
    lead: float  # seconds from where the container begins to play to the first frame

    @property
    def duration(self) -> float:
        return float((self.end - int(self.pts[0])) * self.time_base)

    def seconds(self) -> np.ndarray:
        """float64 [frames]"""
        return self.pts * self.time_base.numerator / self.time_base.denominator


def scan(video: OpenVideo) -> Timeline:
    """The timeline from the packets, nothing decoded. Raises VideoError for a file that its header says is longer."""
    pts, keys, furthest, untimed = array("q"), array("q"), Fraction(0), 0
    end, last_length, clock = None, 0, JoinedClock(video.container)
    for packet in _packets(video):
        own = packet.stream_index == video.stream.index
        if own:
            clock.correct(packet)
        if packet.pts is not None and packet.time_base:
            furthest = max(furthest, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if not own or packet.is_discard:
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
        raise VideoError(f"{video.name}: its video stream holds no frames")
    times = np.unique(np.frombuffer(pts, np.int64))
    if len(times) <= 1 and not untimed and not last_length:
        raise VideoError(f"{video.name}: its only frame has no duration, so it is a picture and not a video")
    timed = not untimed and not clock.joined and len(times) == len(pts)
    ordered = timed and video.container.format.name not in WITHOUT_DISPLAY_TIMES
    end = _end(times, end, last_length) if pts else 0
    base = video.stream.time_base or Fraction(1, av.time_base)
    if pts and not clock.joined:  # else a header speaks of the first recording alone
        _refuse_truncated(video, Fraction(end - int(times[0])) * base, furthest)
    return Timeline(times, np.unique(np.frombuffer(keys, np.int64)), end, base, ordered, _lead(video, times))


def count(video: OpenVideo, packets: Timeline) -> Timeline:
    """The timeline from decoding every frame and keeping none."""
    pts, length, name = array("q"), 0, video.name
    work = DecodeWork(video)
    work.announce(len(packets.pts))
    for frame in work.watch(_frames(video)):
        at = frame.pts if frame.pts is not None else frame.dts
        if at is None:
            raise VideoError(f"{name}: its frames carry no times; convert it to a container that has them, such as mp4")
        pts.append(at)
        length = frame.duration or 0
    if not pts:
        raise VideoError(f"{name}: none of its frames could be decoded")
    times = np.sort(np.frombuffer(pts, np.int64))
    end = _end(times, int(times[-1]) + length, length)
    seconds, promised = float((end - times[0]) * packets.time_base), packets.duration if len(packets.pts) else 0.0
    if promised - seconds > max(MISSING_SECONDS, MISSING_SHARE * promised):
        raise VideoError(f"{name}: only {seconds:.2f} s of its {promised:.2f} s can be decoded; the file is damaged")
    return Timeline(times, packets.keys, end, packets.time_base, ordered=False, lead=_lead(video, times))


def fetch(video: OpenVideo, timeline: Timeline, wanted: np.ndarray) -> Iterator[av.VideoFrame]:
    """The frames of ascending indices `wanted`. Raises OutOfOrder where an ordered timeline turns out not to be."""
    work = DecodeWork(video)
    if timeline.ordered:
        work.announce(_frames_on_the_way(timeline, wanted))
        yield from _fetch_by_time(video, timeline, [int(timeline.pts[i]) for i in wanted], work)
        return
    left = iter(int(i) for i in wanted)
    target = next(left)
    for index, frame in enumerate(work.watch(_frames(video))):
        if index != target:
            continue
        yield frame
        target = next(left, -1)
        if target < 0:
            return
    raise VideoError(f"{video.name}: decoding it twice gave different numbers of frames; the file is damaged")


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


def _demuxed(video: OpenVideo, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of these streams, or of all, and an empty one at the end of each."""
    # PyAV stumbles there over streams that appeared late, as those of a broadcast do; all packets are out by then.
    with contextlib.suppress(IndexError):
        yield from video.container.demux(*streams)


def _packets(video: OpenVideo) -> Iterator[av.Packet]:
    """Of all streams, without the empty ones."""
    for number, packet in enumerate(_demuxed(video)):
        if number >= MOST_PACKETS:
            raise VideoError(f"{video.name}: holds more than {MOST_PACKETS:,} packets; cut it into parts")
        if packet.size or packet.dts is not None:
            yield packet


def _frames(video: OpenVideo) -> Iterator[av.VideoFrame]:
    """All frames of the stream, timed by the joined clock."""
    clock = JoinedClock(video.container)
    for packet in _demuxed(video, video.stream):
        clock.correct(packet)
        yield from packet.decode()


def _fetch_by_time(
    video: OpenVideo, timeline: Timeline, targets: list[int], work: DecodeWork
) -> Iterator[av.VideoFrame]:
    frames: Iterator[av.VideoFrame] | None = None
    frame: av.VideoFrame | None = None
    for target in targets:
        key = _key_before(timeline, target)
        if frames is None or (frame is not None and key > frame.pts):
            frames, frame = work.watch(_decoded_from(video, timeline, key)), None
        while frame is None or frame.pts < target:
            frame = _following(frames, frame)
        if frame.pts != target:
            raise OutOfOrder
        yield frame


def _frames_on_the_way(timeline: Timeline, wanted: np.ndarray) -> int:
    """How many frames have to be decoded for those of indices `wanted`."""
    keys = np.searchsorted(timeline.pts, [_key_before(timeline, int(timeline.pts[i])) for i in wanted])
    before = np.concatenate([[-1], wanted[:-1]])
    return int((wanted - np.maximum(before, keys - 1)).sum())


def _key_before(timeline: Timeline, target: int) -> int:
    """When the key frame appears from which the frame at `target` can be decoded."""
    place = int(np.searchsorted(timeline.keys, target, side="right")) - 1
    return int(timeline.pts[0] if place < 0 else timeline.keys[place])


def _decoded_from(video: OpenVideo, timeline: Timeline, key: int) -> Iterator[av.VideoFrame]:
    if key > timeline.pts[0]:
        video.container.seek(key, stream=video.stream)
    for packet in _demuxed(video, video.stream):
        yield from packet.decode()


def _following(frames: Iterator[av.VideoFrame], frame: av.VideoFrame | None) -> av.VideoFrame:
    """The next frame, which must be a later one."""
    following = next(frames, None)
    if following is None or following.pts is None or (frame is not None and following.pts <= frame.pts):
        raise OutOfOrder
    return following


def _end(times: np.ndarray, end: int | None, last_length: int) -> int:
    """When the last frame disappears; a container that does not say gets the usual step between frames."""
    if last_length or len(times) < 2:
        return int(times[-1]) if end is None else end
    return int(times[-1]) + int(np.median(np.diff(times)))


def _lead(video: OpenVideo, times: np.ndarray) -> float:
    """Seconds from where the container begins to play, with sound perhaps, to the first frame."""
    own, zero = video.stream.start_time, video.container.start_time
    first = own if video.container.format.name in WITHOUT_DISPLAY_TIMES or not len(times) else int(times[0])
    if first is None or zero is None or video.stream.time_base is None:
        return 0.0
    lead = float(first * video.stream.time_base - Fraction(zero, av.time_base))
    return lead if lead > TICK else 0.0


def _refuse_truncated(video: OpenVideo, seconds: Fraction, furthest: Fraction) -> None:
    stream, container = video.stream, video.container
    if stream.duration:
        promised, found = stream.duration * stream.time_base, seconds
    elif container.duration:
        promised, found = Fraction(container.duration, av.time_base), furthest
    else:
        return
    if promised - found > max(MISSING_SECONDS, MISSING_SHARE * promised):
        raise VideoError(
            f"{video.name}: is cut short, its header promises {float(promised):.2f} s and the file holds "
            f"{float(found):.2f} s"
        )
