"""The questions of a task, and the rows that they need, known before any frame is decoded.

Videos differ in length, so there is a ladder of row shapes, the buckets: a video goes into the smallest that holds it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from sttts_jax.data.config import DEFAULT_DATA_DIR, DataConfig, Source
from sttts_jax.data.crops import layout_image
from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.evaluation import Asked, list_questions
from sttts_jax.data.prompt import build_prefix, build_question
from sttts_jax.data.reader import image_sizes
from sttts_jax.data.record import Record, RecordError
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import RowShape, round_up
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.data.video import Clip, probe_clip
from sttts_jax.evals.question_digest import question_digest
from sttts_jax.evals.tasks import Task
from sttts_jax.infer.checkpoint import Setting

BUCKET = 64  # row lengths are multiples of this, and windows of images: few different programs
QUESTION_BUCKET = 16  # lengths of questions are multiples of this
# Decoding may correct the times that the packets announce, and with them a few digits of the time stamps.
SLACK = 16
FEWEST_FRAMES = 8  # of the ladder
TOGETHER = 4  # questions a row: what a video costs is shared, and a row's part of the cache stays small

Subtitles = str | tuple[tuple[float, float, str], ...]


def frame_ladder(max_frames: int, steps: Sequence[int] = ()) -> list[int]:
    """Frame counts of the buckets, ascending, `max_frames` last: `steps` below it, or 8, 16, 32, .."""
    usual = [FEWEST_FRAMES << i for i in range(max_frames.bit_length())]
    return [*sorted({frames for frames in steps or usual if frames < max_frames}), max_frames]


class RowBucket(NamedTuple):
    """Rows of one shape, and who goes there. Plain numbers, so that processes can tell each other.

    frames          of the videos; with `crops` of images before them F
    crops, windows  of the images: part of F, and P
    length          S of the rows, which hold videos and images without their questions
    most, longest   Q and T of a row's questions
    groups          numbers of the questions of each row
    """

    frames: int
    crops: int
    windows: int
    length: int
    most: int
    longest: int
    groups: list[list[int]]

    def shape(self, data: DataConfig, fraction: str) -> RowShape:
        """Of the rows, at a share of cells removed."""
        return data.evaluation_shape(self.frames, fraction, self.length, self.crops, self.windows)


class _Clip(NamedTuple):
    """What is asked about: a clip of a video, images or both. What cannot be read is as text alone: neither."""

    seen: Clip | None  # None without a video
    subtitles: Subtitles
    images: Sequence[tuple[int, int]]  # height, width
    numbers: list[int]


class _Sampled(NamedTuple):
    """A clip at a setting: its frames, the crops and windows of its images, the tokens that its questions share, after
    pruning, and the rows that it takes.
    """

    frames: int
    crops: int
    windows: int
    alive: int
    groups: list[list[int]]


class Questions:
    """The first `limit` questions of a task, or all.

    Raises ValueError where the source is missing or empty, or `limit` below 1.
    """

    def __init__(self, task: Task, source: Source, tokenizer: Tokenizer, data: DataConfig, limit: int | None = None):
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"limit {limit} must be at least 1")
        self.task, self.source, self.limit = task, source, limit
        self.records: Records = open_source(source)
        self._tokenizer, self._data = tokenizer, data
        if not len(self.records):
            raise ValueError(f"task {task.name}: {source.name} ({source.split}) holds no records")

    @cached_property
    def asked(self) -> list[Asked]:
        """Every question, by its number."""
        return list_questions(self.records, self.limit)

    @cached_property
    def digest(self) -> str:
        """Of what is asked and the files that it is about."""
        return question_digest(self.records, self.asked)

    def row_shape(self, setting: Setting) -> RowShape:
        """A row of the most frames for any clip with its longest question behind it, the tokens of images among its
        text; the length is rounded up to BUCKET.
        """
        longest = max(self._sampled(clip, setting, 1).alive for clip in self._clips) + self._longest
        return self._data.evaluation_shape(setting.max_frames, setting.fraction, round_up(longest + SLACK, BUCKET))

    def plan(self, setting: Setting, ladder: Sequence[int], rows: int, together: int = TOGETHER) -> list[RowBucket]:
        """Every question, in buckets; the last one holds any video and may have no questions. Clips with images come
        first, by ascending crops, and then those without, by ascending frames.

        ladder    frame counts, see `frame_ladder`
        rows      of a batch; clips that do not fill one are not worth a program and go one bucket up
        together  most questions in a row; those about one clip share rows whether or not they follow each other
        """
        clips = [self._sampled(clip, setting, together) for clip in self._clips]
        pictured, plain = [clip for clip in clips if clip.crops], [clip for clip in clips if not clip.crops]
        most = max(len(group) for clip in clips for group in clip.groups)
        buckets = []
        for _, members in _share(pictured, _crop_ladder(pictured), rows, lambda clip: clip.crops):
            longest = max(clip.frames for clip in members)
            buckets.append(self._bucket(next(rung for rung in (0, *ladder) if rung >= longest), most, members))
        for frames, members in _share(plain, ladder, rows, lambda clip: clip.frames):
            buckets.append(self._bucket(frames, most, members))
        crops = max((clip.crops for clip in clips if clip.frames), default=0)
        if buckets[-1].frames < ladder[-1] or buckets[-1].crops < crops:
            # For clips that turn out to be longer than their packets say.
            full = self._full(clips, setting)
            buckets.append(self._bucket(ladder[-1], most, full)._replace(groups=[]))
        return buckets

    def _full(self, clips: Sequence[_Sampled], setting: Setting) -> list[_Sampled]:
        """The videos, or text where there are none, as long as they can turn out to be: the one of most tokens."""
        pairs = [pair for pair in zip(clips, self._clips, strict=True) if pair[0].frames]
        pairs = pairs or list(zip(clips, self._clips, strict=True))
        longest = max(pairs, key=lambda pair: pair[0].alive)[1]
        full = self._sampled(longest, dataclasses.replace(setting, max_fps=None), 1)
        return [full, *(clip for clip, _ in pairs)]

    def _bucket(self, frames: int, most: int, clips: Sequence[_Sampled]) -> RowBucket:
        return RowBucket(
            frames=frames,
            crops=max(clip.crops for clip in clips),
            windows=round_up(max(clip.windows for clip in clips), BUCKET),
            length=round_up(max(clip.alive for clip in clips) + SLACK, BUCKET),
            most=most,
            longest=round_up(self._longest, QUESTION_BUCKET),
            groups=[group for clip in clips for group in clip.groups],
        )

    def _sampled(self, clip: _Clip, setting: Setting, together: int) -> _Sampled:
        times: list[float] = []
        if clip.seen is not None:
            sampled = FrameSampling(setting.max_frames, setting.max_fps).times(clip.seen.duration)
            times = (clip.seen.ahead + sampled).tolist()
        groups, data = _split(clip.numbers, together), self._data
        images = [layout_image(size, data.size, data.grid, setting.max_crops) for size in clip.images]
        try:
            prefix = build_prefix(self._tokenizer, times, cells=data.cells, subtitles=clip.subtitles, images=images)
        except RecordError:  # said when it is asked
            return _Sampled(len(times), 0, 0, 0, groups)
        alive = prefix.alive(setting.fraction, data.cells)
        return _Sampled(len(times), sum(prefix.crops), len(prefix.pooling), alive, groups)

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest question."""
        longest = 1
        for asked in self.asked:
            try:
                message = self.records[asked.record].messages[asked.message]
                longest = max(longest, len(build_question(self._tokenizer, message)))
            except RecordError:
                continue
        return longest

    @cached_property
    def _clips(self) -> list[_Clip]:
        """By their first question; what is wrong with those that cannot be used is said when they are asked."""
        clips: dict[Any, _Clip] = {}
        last: tuple[int, _Clip] | None = None
        for asked in self.asked:
            if last is None or last[0] != asked.record:
                last = (asked.record, self._clip(asked.record, clips))
            last[1].numbers.append(asked.number)
        return list(clips.values())

    def _clip(self, number: int, clips: dict[Any, _Clip]) -> _Clip:
        try:
            record = self.records[number]
        except RecordError:
            return clips.setdefault(number, _Clip(None, (), (), []))
        files = (record.video, *record.images)
        seen = number if any(isinstance(file, bytes) for file in files) else files
        key = (seen, record.start, record.end, record.subtitles)
        if key not in clips:
            limits = self._data.limits
            try:
                clips[key] = _Clip(_seen(record, limits), record.subtitles, image_sizes(record, limits), [])
            except RecordError:
                clips[key] = _Clip(None, (), (), [])
        return clips[key]


def task_source(task: Task, data: DataConfig, data_dir: str | None = None) -> Source:
    """Where the task's questions lie: in the build that the run was trained on, if it was, else in `data_dir`."""
    own = next((source for source in data.sources if source.name.split("/")[0] == task.source), None)
    name, usual = (task.source, DEFAULT_DATA_DIR) if own is None else (own.name, own.data_dir)
    return Source(name, 1.0, task.split, data_dir or usual)


def _seen(record: Record, limits: DecodeLimits) -> Clip | None:
    if record.video is None:
        return None
    name = record.name if isinstance(record.video, bytes) else None
    return probe_clip(record.video, start=record.start, end=record.end, name=name, limits=limits)


def _split(numbers: Sequence[int], most: int) -> list[list[int]]:
    """In order, in as few parts of up to `most` as there can be, of nearly equal size."""
    parts = -(-len(numbers) // most)
    size = -(-len(numbers) // parts)
    return [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]


def _share(
    clips: Sequence[_Sampled], rungs: Sequence[int], rows: int, taken: Callable[[_Sampled], int]
) -> Iterator[tuple[int, list[_Sampled]]]:
    """(rung, its clips): those that take no more than it, and more than the one below; one rung up go those that do not
    fill `rows` rows.
    """
    waiting: list[_Sampled] = []
    below = -1
    for rung in rungs:
        waiting += [clip for clip in clips if below < taken(clip) <= rung]
        below = rung
        count = sum(len(clip.groups) for clip in waiting)
        if count >= rows or (count and all(taken(clip) <= rung for clip in clips)):
            yield rung, waiting
            waiting = []


def _crop_ladder(clips: Sequence[_Sampled]) -> list[int]:
    """Crops of the buckets: 2, 4, 8, .. and the most that there are."""
    most = max((clip.crops for clip in clips), default=0)
    return [*(crops for crops in (2 << i for i in range(most.bit_length())) if crops < most), most]
