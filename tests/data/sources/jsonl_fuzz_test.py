"""Rows of a jsonl file with one field of a wrong kind, or with damaged bytes: a good record or a bad one, never more.

Seeds are fixed. Every row goes through all that reads rows: the reader of a training, the preview of `data inspect`,
and the questions of an evaluation.
"""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sttts_jax.data.config import DataConfig, data_config
from sttts_jax.data.evaluation import Asked, QuestionShape, eval_batches, list_questions
from sttts_jax.data.packing import fill_row
from sttts_jax.data.preview import preview
from sttts_jax.data.reader import Reader
from sttts_jax.data.record import RecordError
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import check_batch
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.sources.jsonl import JsonlSource
from sttts_jax.data.tokenizer import Tokenizer

ROWS = 1500  # a seed
ODD: list[Any] = [
    *(None, True, False, 0, -1, 5, 10**400, -(10**19), 0.5, -0.0, 1e-310, 1e30, 1e308),
    *(math.nan, math.inf, -math.inf),
    *("", " ", "x", "a.mp4", "gone.mp4", "talk.srt", "notes.txt", "\x00", "null", "nan", "a" * 5000, "/" * 300),
    *("https://example.com/a.mp4", "gs:/a", "file:///a.mp4", "http:", "//", "..", ".", "~", "-", "pipe:0", "a\u2028b"),
    *("\ud800", "caf\udce9", "e\u0301", "\ufeff", "<im_patch>", "<|im_end|>", "user_qa", "video_multiple_choice"),
    *([], [[]], ["a"], ["a", "b"], [None], [0, 1], [[0, 1]], [[0, 1, "a"]], [["a", "b"]], [[1, 0, "a"]], ["a"] * 30),
    *([[math.nan, 1, "a"]], [["0", "1", "a"]], [["a", None]], {}, {"a": 1}, [{}], [{"question": "Q"}]),
]
CHOICE = {"question": "Which?", "answer": "b", "options": ["a", "b"], "style": "video_multiple_choice"}
TALK = {"question": "Q", "answer": "A", "family": "f", "follow_ups": [["And?", "B"]], "weight": 0.1}
GOOD = [
    {"messages": [{"question": "Q", "answer": "A", "style": "video_short_answer"}], "id": "text"},
    {"messages": [CHOICE, TALK], "id": "tree", "subtitles": "hello"},
    {"video": "a.mp4", "messages": [CHOICE], "start": 0.1, "end": 0.9, "subtitles": [[0.0, 0.5, "hi"]], "images": []},
]


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every field and item within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in inner for place in _places(item, (*way, key)))]


def _changed(rng: np.random.Generator, row: Any) -> Any:
    """`row` with one value anywhere in it replaced, left out, or joined by an unknown one."""
    row = copy.deepcopy(row)
    places = _places(row)
    *way, last = places[int(rng.integers(1, len(places)))]
    inner = row
    for key in way:
        inner = inner[key]
    if rng.random() < 0.1:
        del inner[last]
    elif rng.random() < 0.05 and isinstance(inner, dict):
        inner[f"{last}s"] = inner[last]
    else:
        inner[last] = ODD[int(rng.integers(len(ODD)))]
    return row


def _damaged(rng: np.random.Generator, line: bytes) -> bytes:
    """One to three bytes changed, or the line cut short. None of them ends the line."""
    data = bytearray(line)
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    cut = int(rng.integers(1, len(data))) if rng.random() < 0.2 else len(data)
    return bytes(data[:cut]).replace(b"\n", b"?") or b"?"


def _line(rng: np.random.Generator) -> bytes:
    row = GOOD[int(rng.integers(len(GOOD)))]
    kind = rng.random()
    if kind < 0.2:
        return _damaged(rng, json.dumps(row, ensure_ascii=False).encode())
    for _ in range(int(rng.integers(3))):
        row = _changed(rng, row)
    return json.dumps(row).encode()


@pytest.fixture(scope="module")
def config() -> DataConfig:
    return data_config(
        sources=(("x",),), image_size=24, max_frames=2, frames_per_row=2, row_length=900, cells=9, bad_share=1
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_any_row_is_a_good_record_or_a_bad_one(
    seed: int, config: DataConfig, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "sttts_jax.data")
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    rng = np.random.default_rng(seed)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(_line(rng) for _ in range(ROWS)))
    source, shape = JsonlSource(str(tmp_path / "rows.jsonl")), config.row_shape
    assert len(source) == ROWS
    reader, good = Reader(config, [source], tokenizer), 0
    for index in range(ROWS):
        item = reader((0, index, index))
        if item is not None:
            check_batch({name: value[None] for name, value in fill_row([item], shape).items()}, shape)
            assert np.isfinite(item.example.weights).all()
            good += 1
    assert 0.1 * ROWS < good < 0.6 * ROWS and good + len(reader.bad.named) == ROWS
    assert all(f"rows.jsonl:{index + 1}" in cause for (_, index), cause in reader.bad.named.items())
    seen = list(preview(source, range(ROWS), FrameSampling(2)))
    usable = [index for index in range(ROWS) if (0, index) not in reader.bad.named]
    assert [seen[index].usable for index in usable] == [True] * len(usable)
    asked = list_questions(source)
    groups = [[Asked(a.record, a.message, a.number)] for a in asked]
    room = QuestionShape(1, 6000)
    shape, most = config.evaluation_shape(), config.max_crops
    batches = eval_batches(source, tokenizer, shape, room, groups, config.frame_sampling, max_crops=most, rows=50)
    facts = [meta for batch in batches for group in batch.meta for meta in group]
    assert [meta["number"] for meta in facts] == list(range(len(asked)))
    assert {meta["record"] for meta in facts if "error" in meta} <= {index for _, index in reader.bad.named}


def test_a_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    """Whole files with damaged bytes: lines may join or part, and the encoding may look like another."""
    rng, file = np.random.default_rng(2), tmp_path / "rows.jsonl"
    whole = b"\n".join(json.dumps(row).encode() for row in GOOD * 3)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(len(data)) if rng.random() < 0.8 else rng.integers(4))] = int(rng.integers(256))
        file.write_bytes(data)
        try:
            source = JsonlSource(str(file))
        except ValueError as error:
            assert "is UTF-" in str(error)
            refused += 1
            continue
        for index in range(len(source)):
            try:
                source[index]
            except RecordError as error:
                assert str(error).startswith(f"{file}:")
    assert refused < 100
