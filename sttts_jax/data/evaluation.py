"""Batches for evaluation: one question a row, an inference prompt, nothing shuffled, nothing packed.

Every process makes the same number of batches, whatever fails on the way, so that a program over all devices stays in
step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sttts_jax.data.packing import Item, fill_row, lengths, stack
from sttts_jax.data.prompt import build_prompt, target_text
from sttts_jax.data.reader import LOG, read_video
from sttts_jax.data.record import Message, Record, RecordError
from sttts_jax.data.schema import RowShape
from sttts_jax.data.sources.registry import Records
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.data.video import Video, VideoError


@dataclass(frozen=True)
class EvalBatch:
    """`arrays` as in training; rows that are not `valid` (bool [B]) are padding or failed and hold no tokens.

    `meta[row]` has id, family, question, answer, target, options, style, times; of a failed question also error; {}
    for padding.
    """

    arrays: dict[str, np.ndarray]
    valid: np.ndarray
    meta: list[dict[str, Any]]


def eval_batches(
    records: Records,
    tokenizer: Tokenizer,
    shape: RowShape,
    *,
    max_frames: int,
    max_fps: float | None,
    rows: int,
    style: str | None = None,
    limit: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
) -> Iterator[EvalBatch]:
    """Batches of `rows // shard_count` rows, the last one padded. `style` asks every question in that style; `limit`
    bounds the questions.

    `shape` is RowShape with one item; see DataConfig.evaluation_shape. A video that cannot be used is logged and
    marked in `meta`.
    """
    if max_frames > shape.frames:
        raise ValueError(
            f"rows of {shape.frames} frames cannot hold max_frames={max_frames}; give a shape of at least as many"
        )
    if rows % shard_count or not 0 <= shard_index < shard_count:
        raise ValueError(f"{rows} rows cannot be divided among {shard_count} processes; give a multiple of it")
    asked = [(r, m) for r in range(len(records)) for m in range(_count(records, r))][:limit]
    mine = rows // shard_count
    last: tuple[int, Record, Video | None] | None = None
    empty = fill_row([], shape)
    for first in range(0, len(asked), rows):
        filled, valid, meta = [], [], []
        for index in range(first + shard_index * mine, first + (shard_index + 1) * mine):
            row: dict[str, np.ndarray] = empty
            facts: dict[str, Any] = {}
            if index < len(asked):
                number, message = asked[index]
                try:
                    if last is None or last[0] != number:  # questions about a video follow each other
                        last = (number, *_read(records[number], shape, max_frames, max_fps))
                    _, record, video = last
                    row, facts = _row(record, video, record.messages[message], tokenizer, shape, style)
                except (RecordError, VideoError) as error:
                    LOG.warning("question %d of record %d cannot be asked: %s", message, number, error)
                    last, facts = None, {"record": number, "message": message, "error": str(error)}
            filled.append(row)
            valid.append(bool(facts) and "error" not in facts)
            meta.append(facts)
        yield EvalBatch(stack(filled), np.asarray(valid), meta)


def _count(records: Records, index: int) -> int:
    """Questions of a record; one that cannot be read counts as one, so that it is reported."""
    try:
        return len(records[index].messages)
    except RecordError:
        return 1


def _read(record: Record, shape: RowShape, max_frames: int, max_fps: float | None) -> tuple[Record, Video | None]:
    return record, None if record.video is None else read_video(record, shape.size, max_frames, max_fps)


def _row(
    record: Record, video: Video | None, message: Message, tokenizer: Tokenizer, shape: RowShape, style: str | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    asked = Message(message.question, message.answer, style or message.style, message.options, message.family)
    times = np.zeros(0) if video is None else video.times
    example = build_prompt(tokenizer, times, asked, cells=shape.cells, subtitles=record.subtitles)
    lengths(example, shape)
    frames = np.zeros((0, *shape.size, 3), np.uint8) if video is None else video.frames
    facts = {
        "id": record.id,
        "family": asked.family,
        "question": asked.question,
        "answer": asked.answer,
        "target": target_text(asked),
        "options": asked.options,
        "style": asked.style,
        "times": times.tolist(),
    }
    return fill_row([Item(example, frames)], shape), facts
