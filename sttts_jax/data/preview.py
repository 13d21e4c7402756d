"""Records of a source as a person looks at them before a training: what they say, and their sampled frames.

for seen in preview(open_source(Source("jsonl:my/train.jsonl")), range(3), FrameSampling(8, max_fps=2)):
    print(seen.text)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.reader import read_video
from sttts_jax.data.record import Record, RecordError
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.registry import Records
from sttts_jax.data.video import Video, VideoError


@dataclass(frozen=True)
class Preview:
    """One record.

    text     its number, name, video and messages, a line each; of a record that cannot be used, the cause
    frames   uint8 [F, h, w, 3] as they are stored; None without a video
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
        except (RecordError, VideoError) as error:
            yield Preview(f"[{index}] cannot be used: {error}", None, usable=False)


def _preview(record: Record, index: int, sampling: FrameSampling) -> Preview:
    video = None if record.video is None else read_video(record, sampling, size=None)
    lines = [f"[{index}] {record.id}", *_video_lines(video), *_message_lines(record)]
    return Preview("\n".join(lines), None if video is None else video.frames, usable=True)


def _video_lines(video: Video | None) -> Iterator[str]:
    if video is not None:
        frames, height, width, _ = video.frames.shape
        times = " ".join(f"{t:.1f}" for t in video.times)
        yield f"    {video.duration:.2f} s, {width} x {height}, {frames} frames at {times} s"


def _message_lines(record: Record) -> Iterator[str]:
    for message in record.messages:
        asked = user_text(message).replace("\n", " | ")
        yield f"    {message.family or message.style}: {asked}  ->  {target_text(message)}"
