"""Batches for evaluation: one video a row, with some of the questions about it; nothing shuffled, nothing packed.

    row        BOS  "0.0 " <frame_start> ..  [subtitles]     what the questions on a video share: read and run once
    questions  "<|im_start|>user\\n" .. "assistant\\n"         each continues the row by itself

Every process makes the same number of batches, whatever fails on the way, so that a program over all devices stays in
step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sttts_jax.data.decode_limits import USUAL_LIMITS, DecodeLimits
from sttts_jax.data.packing import Item, fill_row, lengths, stack
from sttts_jax.data.prompt import build_prefix, build_question, target_text
from sttts_jax.data.reader import LOG, join_pictures, read_images, read_video
from sttts_jax.data.record import Message, Record, RecordError, naming
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import RowShape
from sttts_jax.data.sources.registry import Records
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.data.video import Video


class Asked(NamedTuple):
    """A question: where it stands in its source, and its number in the order there."""

    record: int
    message: int
    number: int


class QuestionShape(NamedTuple):
    """The static sizes of a row's questions."""

    most: int  # Q
    longest: int  # T, tokens of a question


@dataclass(frozen=True)
class EvalBatch:
    """`arrays` as in training, without questions; rows that failed and padding hold no tokens.

    questions  int32 [B, Q, T] token ids, padded with 0
    lengths    int32 [B, Q], 0 where nothing is asked
    meta       [B] lists, one dict for each question of the row: number, id, family, question, answer, target, options,
               style, times of the video's frames, crops of the images before them; of one that cannot be asked number,
               record, message, error, and `unfit`: whether it is because the video takes more than these rows have
    """

    arrays: dict[str, np.ndarray]
    questions: np.ndarray
    lengths: np.ndarray
    meta: list[list[dict[str, Any]]]


def list_questions(records: Records, limit: int | None = None) -> list[Asked]:
    """The first `limit` questions, or all, in order. A record that cannot be read counts as one question, so that it is
    reported.
    """
    asked: list[Asked] = []
    for record in range(len(records)):
        try:
            count = len(records[record].messages)
        except RecordError:
            count = 1
        asked += [Asked(record, message, len(asked) + message) for message in range(count)]
        if limit is not None and len(asked) >= limit:
            break
    return asked[:limit]


def eval_batches(
    records: Records,
    tokenizer: Tokenizer,
    shape: RowShape,
    questions: QuestionShape,
    groups: Sequence[Sequence[Asked]],
    sampling: FrameSampling,
    *,
    max_crops: int,
    rows: int,
    limits: DecodeLimits = USUAL_LIMITS,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[EvalBatch]:
    """Batches of `rows // shard_count` rows, a group a row, the last one padded; a group shares its video, clip, images
    and subtitles; `max_crops` are the most tiles of an image.

    `shape` is RowShape with one item; see DataConfig.evaluation_shape. A video or question that cannot be used is
    logged and marked in `meta`.
    """
    if rows % shard_count or not 0 <= shard_index < shard_count:
        raise ValueError(f"{rows} rows cannot be divided among {shard_count} processes; give a multiple of it")
    most = max(map(len, groups), default=0)
    if most > questions.most:
        raise ValueError(f"a group of {most} questions does not fit the {questions.most} of a row; split it")
    maker = _RowBuilder(records, tokenizer, shape, questions, sampling, max_crops, limits)
    mine = rows // shard_count
    for first in range(0, len(groups), rows):
        own = groups[first + shard_index * mine : first + (shard_index + 1) * mine]
        made = [maker.row(group) for group in [*own, *[()] * (mine - len(own))]]
        tokens, counts = np.stack([row.questions for row in made]), np.stack([row.lengths for row in made])
        yield EvalBatch(stack([row.arrays for row in made]), tokens, counts, [row.meta for row in made])


class _Row(NamedTuple):
    arrays: dict[str, np.ndarray]
    questions: np.ndarray
    lengths: np.ndarray
    meta: list[dict[str, Any]]


class _Unfit(RecordError):
    """The video takes more than a row of this shape has."""


@dataclass
class _RowBuilder:
    """Makes rows of groups. Keeps the last video, since the groups of a video follow each other."""

    records: Records
    tokenizer: Tokenizer
    shape: RowShape
    questions: QuestionShape
    sampling: FrameSampling
    max_crops: int
    limits: DecodeLimits
    last: tuple[Any, Video] | None = None

    def row(self, group: Sequence[Asked]) -> _Row:
        """Whatever cannot be asked is named in its place, and the rest is asked."""
        most, longest = self.questions
        tokens, used = np.zeros((most, longest), np.int32), np.zeros(most, np.int32)
        arrays, seen, broken, meta = fill_row([], self.shape), dict[str, Any](), None, []
        try:
            if group:
                arrays, seen = self._prefix(self.records[group[0].record])
        except RecordError as error:
            broken = error
        for place, asked in enumerate(group):
            try:
                ids, facts = self._question(asked, broken)
            except RecordError as error:
                LOG.warning("question %d cannot be asked: %s", asked.message, error)
                meta.append({**asked._asdict(), "error": str(error), "unfit": isinstance(error, _Unfit)})
                continue
            tokens[place, : len(ids)], used[place] = ids, len(ids)
            meta.append({"number": asked.number, **facts, **seen})
        return _Row(arrays, tokens, used, meta)

    def _prefix(self, record: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of a row, and what of its meta is the same for all questions. What is wrong with them is said with
        the record's name.
        """
        with naming(record.name):
            return self._seen(record)

    def _seen(self, record: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        images = read_images(record, self.shape, self.max_crops, self.limits)
        pictures, times = [image.crops for image in images], np.zeros(0)
        if record.video is not None:
            video = self._video(record)
            pictures, times = [*pictures, video.frames], video.times
        prefix = build_prefix(self.tokenizer, times, cells=self.shape.cells, subtitles=record.subtitles, images=images)
        try:
            lengths(prefix, self.shape)
        except RecordError as error:
            raise _Unfit(*error.args) from error
        seen = {"times": times.tolist(), "crops": sum(prefix.crops)}
        return fill_row([Item(prefix, join_pictures(pictures, self.shape))], self.shape), seen

    def _video(self, record: Record) -> Video:
        clip = (record.video, record.start, record.end)
        if self.last is None or self.last[0] != clip:
            self.last = (clip, read_video(record, self.sampling, self.shape.size, self.limits))
        return self.last[1]

    def _question(self, place: Asked, broken: Exception | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Its tokens, and what scoring and reports want to know. Raises `broken`, what its video or images met with."""
        if broken is not None:
            raise broken
        record = self.records[place.record]
        with naming(record.name):
            return self._asked(record, record.messages[place.message])

    def _asked(self, record: Record, asked: Message) -> tuple[np.ndarray, dict[str, Any]]:
        ids = build_question(self.tokenizer, asked)
        if len(ids) > self.questions.longest:
            raise RecordError(f"takes {len(ids)} tokens and a question has {self.questions.longest}; shorten it")
        return ids, {
            "id": record.id,
            "family": asked.family,
            "question": asked.question,
            "answer": asked.answer,
            "target": target_text(asked),
            "options": asked.options,
            "style": asked.style,
        }
