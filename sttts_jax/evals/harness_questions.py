"""The questions of a task, and the row that the longest of them needs, known before any frame is decoded."""

from dataclasses import dataclass
from functools import cached_property

from sttts_jax.data.config import DEFAULT_DATA_DIR, DataConfig, Source
from sttts_jax.data.prompt import build_prompt
from sttts_jax.data.record import Message, Record, RecordError
from sttts_jax.data.schema import RowShape
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.data.video import VideoError, probe, sample_times
from sttts_jax.evals.harness_subject import Setting
from sttts_jax.evals.tasks.task import Task
from sttts_jax.pruning.budget import n_drop

BUCKET = 64  # row lengths are multiples of this: few different programs
# Decoding may correct the times that the packets announce, and with them a few digits of the time stamps.
SLACK = 16
_BLANK = Message("", "", "user_qa")

Subtitles = str | tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class _Ask:
    """What a record adds to a row besides its pictures."""

    duration: float | None  # of the clip, seconds; None for text alone
    subtitles: Subtitles
    longest: int  # tokens of its longest question, asked without the video


class Questions:
    """The first `limit` questions of a task, or all. Raises ValueError where the source is missing or empty."""

    def __init__(self, task: Task, source: Source, tokenizer: Tokenizer, cells: int, limit: int | None = None):
        self.task, self.source, self.limit = task, source, limit
        self.records: Records = open_source(source)
        self._tokenizer, self._cells = tokenizer, cells
        if not len(self.records):
            raise ValueError(f"task {task.name}: {source.name} ({source.split}) holds no records")

    @cached_property
    def asked(self) -> list[tuple[int, int]]:
        """(record, message) of every question, in the order of `data.evaluation.eval_batches`. A record that cannot be
        read counts as one question, which is reported as bad.
        """
        asked: list[tuple[int, int]] = []
        for index in range(len(self.records)):
            try:
                count = len(self.records[index].messages)
            except RecordError:
                count = 1
            asked += [(index, message) for message in range(count)]
            if self.limit is not None and len(asked) >= self.limit:
                break
        return asked[: self.limit]

    def row_shape(self, data: DataConfig, setting: Setting) -> RowShape:
        """One question a row; the length is what the longest needs after pruning, rounded up to BUCKET."""
        longest = max((self._alive(ask, setting) for ask in self._asks), default=0) + SLACK
        return data.evaluation_shape(setting.max_frames, setting.fraction, -(-longest // BUCKET) * BUCKET)

    def _alive(self, ask: _Ask, setting: Setting) -> int:
        if ask.duration is None:
            return ask.longest
        times = tuple(sample_times(ask.duration, setting.max_frames, setting.max_fps).tolist())
        # Each time stamp and each turn is encoded by itself, so lengths add up.
        prefix = self._length(_BLANK, times, ask.subtitles) - self._length(_BLANK)
        return ask.longest + prefix - n_drop(len(times), setting.fraction, self._cells)

    def _length(self, message: Message, times: tuple[float, ...] = (), subtitles: Subtitles = ()) -> int:
        return len(build_prompt(self._tokenizer, times, message, cells=self._cells, subtitles=subtitles).tokens)

    @cached_property
    def _asks(self) -> list[_Ask]:
        """Of every usable record; what is wrong with the others is said when they are asked."""
        asks = []
        for index in sorted({record for record, _ in self.asked}):
            try:
                record = self.records[index]
                longest = max(self._length(message) for message in record.messages)
                asks.append(_Ask(_duration(record), record.subtitles, longest))
            except (RecordError, VideoError):
                continue
        return asks


def task_source(task: Task, data: DataConfig, data_dir: str | None = None) -> Source:
    """Where the task's questions lie: in the build that the run was trained on, if it was, else in `data_dir`."""
    own = next((source for source in data.sources if source.name.split("/")[0] == task.source), None)
    name, usual = (task.source, DEFAULT_DATA_DIR) if own is None else (own.name, own.data_dir)
    return Source(name, 1.0, task.split, data_dir or usual)


def _duration(record: Record) -> float | None:
    if record.video is None:
        return None
    whole = probe(record.video, record.id if isinstance(record.video, bytes) else None).duration
    return max(min(whole, whole if record.end is None else record.end) - (record.start or 0.0), 0.0)
