"""Records of a source as a person looks at them before a training: what they say, and their sampled frames.

for seen in preview(open_source(Source("jsonl:my/train.jsonl")), range(3), FrameSampling(8, max_fps=2)):
    print(seen.text)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sttts_jax.data.crops import read_image
from sttts_jax.data.decode_limits import USUAL_LIMITS
from sttts_jax.data.prompt import near_subtitles, subtitle_text, turns, without_reserved
from sttts_jax.data.reader import image_name, read_video
from sttts_jax.data.record import Message, Record, RecordError, naming
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.registry import Records
from sttts_jax.data.styles import shows_options
from sttts_jax.data.video import Video, display_size, shown_size


@dataclass(frozen=True)
class Preview:
    """One record.

    text     its number, name, images, clip, subtitles and messages, a line each; of a record that cannot be used, the
             cause
    frames   uint8 [F, h, w, 3], of the size to show them at; None without a video
    usable   whether a training could take it
    """

    text: str
    frames: np.ndarray | None
    usable: bool


def preview(records: Records, indices: Iterable[int], sampling: FrameSampling) -> Iterator[Preview]:
    """One Preview an index, read and decoded when it is asked for."""
    for index in indices:
        try:
            yield _preview(records[index], index, sampling)
        except RecordError as error:
            yield Preview(f"[{index}] cannot be used: {error}", None, usable=False)


def _preview(record: Record, index: int, sampling: FrameSampling) -> Preview:
    with naming(record.name):
        images = list(_image_lines(record))
        video = None if record.video is None else _film(record, record.video, sampling)
        lines = [*images, *_video_lines(record, video), *_subtitle_lines(record, video)]
        lines += [line for message in record.messages for line in _message_lines(message)]
    text = "\n    ".join([f"[{index}] {record.id}", *lines])
    return Preview(text, None if video is None else video.frames, usable=True)


def _film(record: Record, file: str | bytes, sampling: FrameSampling) -> Video:
    """Of one size to be shown at, since that of the stored frames may change within a video, and be large."""
    size = display_size(file, record.name if isinstance(file, bytes) else file)
    return read_video(record, sampling, size, USUAL_LIMITS)


def _image_lines(record: Record) -> Iterator[str]:
    for number, image in enumerate(record.images, 1):
        height, width, _ = read_image(image, image_name(record, number)).shape
        yield f"image {number}: {width} x {height}"


def _video_lines(record: Record, video: Video | None) -> Iterator[str]:
    if video is not None and record.video is not None:
        frames, name = len(video.frames), record.name if isinstance(record.video, bytes) else record.video
        height, width = map(round, shown_size(record.video, name))
        times = " ".join(f"{t:.1f}" for t in video.times)
        clip = "" if record.start is None and record.end is None else f" from {record.start or 0.0:g} s on"
        yield f"{video.duration:.2f} s{clip}, {width} x {height}, {frames} frames at {times} s"


def _subtitle_lines(record: Record, video: Video | None) -> Iterator[str]:
    """As the model reads them, and how many lines it does not read because no sampled frame is near."""
    if not record.subtitles:
        return
    times, lines = np.zeros(0) if video is None else video.times, record.subtitles
    near = (
        "" if isinstance(lines, str) else f", {len(near_subtitles(lines, times))} of {len(lines)} lines: near a frame"
    )
    header, *said = without_reserved(subtitle_text(lines, times)).rstrip("\n").split("\n")
    yield header + near
    yield from (f"  {line}" for line in said)


def _message_lines(message: Message) -> Iterator[str]:
    """Every turn; in brackets what the model does not read."""
    (asked, answer), *later = [tuple(map(_one_line, turn)) for turn in turns(message)]
    notes = [f"weight {message.weight:g}"] if message.weight is not None else []
    if message.options and not shows_options(message.style):
        notes.append(f"scored against {', '.join(message.options)}")
    yield f"{message.family or message.style}: {asked}  ->  {answer}" + (f"  [{'; '.join(notes)}]" if notes else "")
    for asked, answer in later:
        yield f"  then: {asked}  ->  {answer}"


def _one_line(text: str) -> str:
    return without_reserved(text).replace("\n", " | ")
