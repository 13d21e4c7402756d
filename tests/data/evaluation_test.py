"""Evaluation batches: every question once, in order, on every number of processes."""

import json
from pathlib import Path

import numpy as np
import pytest

from sttts_jax.data.config import DataConfig, Source
from sttts_jax.data.evaluation import EvalBatch, eval_batches
from sttts_jax.data.schema import RowShape, check_batch
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer

SHAPE = RowShape(frames=8, items=1, length=600, fraction="0.5", cells=81, size=(24, 24))
SAMPLING = {"max_frames": 8, "max_fps": 2.0}


@pytest.fixture(scope="module")
def records(data_dir: str) -> Records:
    return open_source(Source("shapes_video_qa", 1.0, "test", data_dir))


def _asked(batches: list[EvalBatch]) -> list[tuple[str, str, str]]:
    return [(m["id"], m["question"], m["answer"]) for b in batches for m in b.meta if m]


def test_every_question_once_in_order(records: Records, tokenizer: Tokenizer) -> None:
    batches = list(eval_batches(records, tokenizer, SHAPE, rows=16, **SAMPLING))
    expected = [(r.id, m.question, m.answer) for r in (records[i] for i in range(8)) for m in r.messages]
    assert _asked(batches) == expected
    for batch in batches:
        check_batch(batch.arrays, SHAPE)
        assert len(batch.valid) == len(batch.meta) == len(batch.arrays["tokens"]) == 16
        assert np.array_equal(batch.valid, (batch.arrays["example"][:, 0] >= 0))
        assert not batch.arrays["weights"].any()
    assert batches[-1].valid.sum() == len(expected) - 16 * (len(batches) - 1)
    row, meta = batches[0].arrays["tokens"][0], batches[0].meta[0]
    length = (batches[0].arrays["example"][0] >= 0).sum()
    text = tokenizer.decode(row[:length], skip_special=False)
    assert text.endswith("<|im_start|>assistant\n") and meta["question"] in text
    assert set(meta) == {"id", "family", "question", "answer", "target", "options", "style", "times"}


def test_processes_share_the_rows_of_each_batch(records: Records, tokenizer: Tokenizer) -> None:
    whole = list(eval_batches(records, tokenizer, SHAPE, rows=16, limit=50, **SAMPLING))
    parts = [
        list(eval_batches(records, tokenizer, SHAPE, rows=16, limit=50, shard_index=i, shard_count=2, **SAMPLING))
        for i in (0, 1)
    ]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 4
    for one, left, right in zip(whole, *parts, strict=True):
        for name, value in one.arrays.items():
            assert np.array_equal(value, np.concatenate([left.arrays[name], right.arrays[name]]))
    with pytest.raises(ValueError, match="cannot be divided"):
        next(eval_batches(records, tokenizer, SHAPE, rows=3, shard_count=2, **SAMPLING))


def test_one_style_for_all(records: Records, tokenizer: Tokenizer) -> None:
    style = "video_eval_multiple_choice"
    batch = next(eval_batches(records, tokenizer, SHAPE, rows=9, style=style, **SAMPLING))
    assert all(m["style"] == style and m["target"][:3] in ("A. ", "B. ", "C. ", "D. ") for m in batch.meta)


def test_more_frames_than_in_training(records: Records, tokenizer: Tokenizer) -> None:
    config = DataConfig(sources=(), max_frames=8, row_length=600, image_size=24)
    shape = config.evaluation_shape(max_frames=16, fraction="0.75", row_length=700)
    batch = next(eval_batches(records, tokenizer, shape, rows=2, max_frames=16, max_fps=4.0))
    check_batch(batch.arrays, shape)
    assert (batch.arrays["frame_item"][0] >= 0).sum() == 15
    with pytest.raises(ValueError, match="rows of 8 frames cannot hold max_frames=16"):
        next(eval_batches(records, tokenizer, SHAPE, rows=2, max_frames=16, max_fps=4.0))


def test_a_bad_video_is_marked_and_the_rest_asked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    lines = [{"video": v, "messages": [{"question": "Q", "answer": "B"}] * 2} for v in ("a.mp4", "gone.mp4", "a.mp4")]
    (tmp_path / "set.jsonl").write_text("\n".join([*map(json.dumps, lines), "{"]))
    records = open_source(Source(f"jsonl:{tmp_path}/set.jsonl"))
    batches = list(eval_batches(records, tokenizer, SHAPE, rows=4, **SAMPLING))
    assert np.concatenate([b.valid for b in batches]).tolist() == [True, True, False, False, True, True, False, False]
    errors = [m.get("error") for b in batches for m in b.meta]
    assert [bool(e) for e in errors] == [False, False, True, True, False, False, True, False]
    assert errors[2].endswith("gone.mp4: no such file") and "is not JSON" in errors[6]
