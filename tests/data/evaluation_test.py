"""Evaluation batches: every question once, in the row of its video, on every number of processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sttts_jax.data.config import DataConfig, Source
from sttts_jax.data.evaluation import Asked, EvalBatch, QuestionShape, eval_batches, list_questions
from sttts_jax.data.record import Message, Record
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import RowShape, check_batch
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer
from tests.data.whole_prompts import build_prompt

SHAPE = RowShape(frames=8, items=1, length=600, fraction="0.5", cells=81, size=(24, 24))
ROOM = QuestionShape(3, 96)
SAMPLING = FrameSampling(8, 2.0)


@pytest.fixture(scope="module")
def records(data_dir: str) -> Records:
    return open_source(Source("shapes_video_qa", 1.0, "test", data_dir))


def _groups(records: Records, limit: int | None = None) -> list[list[Asked]]:
    """Up to three questions on a video a row."""
    by_video: dict[int, list[Asked]] = {}
    for asked in list_questions(records, limit):
        by_video.setdefault(asked.record, []).append(asked)
    return [asked[first : first + 3] for asked in by_video.values() for first in range(0, len(asked), 3)]


def _facts(batches: list[EvalBatch]) -> list[dict[str, Any]]:
    return [meta for batch in batches for group in batch.meta for meta in group]


def test_every_question_once_in_its_row(records: Records, tokenizer: Tokenizer) -> None:
    groups = _groups(records)
    batches = list(eval_batches(records, tokenizer, SHAPE, ROOM, groups, SAMPLING, max_crops=0, rows=8))
    expected = [(r.id, m.question, m.answer) for r in (records[i] for i in range(8)) for m in r.messages]
    facts = _facts(batches)
    assert [(m["id"], m["question"], m["answer"]) for m in facts] == expected
    assert [m["number"] for m in facts] == list(range(len(expected)))
    assert len(batches) == -(-len(groups) // 8)
    for number, batch in enumerate(batches):
        check_batch(batch.arrays, SHAPE)
        assert batch.questions.shape == (8, *ROOM) and batch.lengths.shape == (8, ROOM.most)
        own = [len(group) for group in groups[8 * number : 8 * number + 8]]
        assert (batch.lengths > 0).sum(axis=1).tolist() == own + [0] * (8 - len(own))
        assert not batch.arrays["weights"].any()
    keys = {"number", "id", "family", "question", "answer", "target", "options", "style", "times", "crops"}
    assert set(facts[0]) == keys


def test_a_row_and_its_question_are_the_prompt(records: Records, tokenizer: Tokenizer) -> None:
    """Token for token and position for position, and no vision token is left for the question."""
    groups = _groups(records, 12)
    batch = next(eval_batches(records, tokenizer, SHAPE, ROOM, groups, SAMPLING, max_crops=0, rows=len(groups)))
    for row, group in enumerate(groups):
        end = int((batch.arrays["example"][row] >= 0).sum())
        for place, asked in enumerate(group):
            message, times = records[asked.record].messages[asked.message], batch.meta[row][place]["times"]
            whole = build_prompt(tokenizer, times, message, cells=81)
            question = batch.questions[row, place, : batch.lengths[row, place]]
            assert np.array_equal(whole.tokens, np.concatenate([batch.arrays["tokens"][row, :end], question]))
            for name in ("cells", "vision", "segment", "position"):
                assert np.array_equal(getattr(whole, name)[:end], batch.arrays[name][row, :end])
            assert not whole.vision[end:].any() and (whole.cells[end:] < 0).all()
            assert np.array_equal(
                whole.position[end:], batch.arrays["position"][row, end - 1] + 1 + np.arange(len(question))
            )


def test_processes_share_the_rows_of_each_batch(records: Records, tokenizer: Tokenizer) -> None:
    groups = _groups(records, 50)
    split = [
        list(
            eval_batches(
                records, tokenizer, SHAPE, ROOM, groups, SAMPLING, max_crops=0, rows=4, shard_index=i, shard_count=n
            )
        )
        for n, i in ((1, 0), (2, 0), (2, 1))
    ]
    assert {len(part) for part in split} == {-(-len(groups) // 4)}
    for one, left, right in zip(*split, strict=True):
        for name, value in one.arrays.items():
            assert np.array_equal(value, np.concatenate([left.arrays[name], right.arrays[name]]))
        assert np.array_equal(one.questions, np.concatenate([left.questions, right.questions]))
        assert one.meta == left.meta + right.meta
    for bad, message in (
        ({"rows": 3, "shard_count": 2}, "cannot be divided"),
        ({"rows": 4, "questions": QuestionShape(2, 96)}, "a group of 3 questions does not fit the 2"),
    ):
        with pytest.raises(ValueError, match=message):
            options = {"questions": ROOM, "groups": groups, "sampling": SAMPLING, "max_crops": 0, **bad}
            next(eval_batches(records, tokenizer, SHAPE, **options))


def test_rows_of_more_and_of_too_few_frames(records: Records, tokenizer: Tokenizer) -> None:
    """Sampling is the same in every row; a video that does not fit its row is marked as such."""
    config = DataConfig(sources=(), max_frames=8, row_length=600, image_size=24)
    shape = config.evaluation_shape(max_frames=16, fraction="0.75", row_length=700)
    sampling = FrameSampling(16, 4.0)
    batch = next(eval_batches(records, tokenizer, shape, ROOM, _groups(records), sampling, max_crops=0, rows=2))
    check_batch(batch.arrays, shape)
    assert (batch.arrays["frame_item"][0] >= 0).sum() == 15
    batch = next(eval_batches(records, tokenizer, SHAPE, ROOM, _groups(records), sampling, max_crops=0, rows=2))
    assert not batch.lengths.any() and (batch.arrays["example"] < 0).all()
    assert all(m["unfit"] and "takes 15 frames and a row has 8" in m["error"] for m in _facts([batch]))


def test_a_question_that_cannot_be_asked_leaves_the_others(tokenizer: Tokenizer, tmp_path: Path) -> None:
    asked = {"question": "Q", "answer": "a", "options": ["a", "b"], "style": "video_multiple_choice"}
    line = {"messages": [asked, {**asked, "answer": "c"}, {**asked, "question": "Q " * 200}]}
    (tmp_path / "set.jsonl").write_text(json.dumps(line))
    records = open_source(Source(f"jsonl:{tmp_path}/set.jsonl"))
    (batch,) = eval_batches(records, tokenizer, SHAPE, ROOM, _groups(records), SAMPLING, max_crops=0, rows=1)
    assert (batch.lengths[0] > 0).tolist() == [True, False, False]
    errors = [m.get("error", "") for m in _facts([batch])]
    assert not errors[0] and "none of the options" in errors[1] and "a question has 96" in errors[2]
    assert not any(m.get("unfit") for m in _facts([batch]))


def test_images_come_before_the_video(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A row for a video and its images; what has no room is named, and whether larger rows would help."""
    video = encode_mp4(np.full((8, 16, 16, 3), 100, np.uint8), 8)
    Image.fromarray(np.full((20, 50, 3), 200, np.uint8)).save(tmp_path / "a.png")
    message = (Message("Q", "B", "user_qa"),)
    records = [
        Record("both", video, message, images=(str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes())),
        Record("image", None, message, images=(str(tmp_path / "a.png"),)),
        Record("gone", None, message, images=(str(tmp_path / "b.png"),)),
        Record("many", None, message, images=(str(tmp_path / "a.png"),) * 6),
    ]
    config = DataConfig(sources=(), max_frames=4, row_length=2600, image_size=54)
    shape = config.evaluation_shape(crops=10)
    assert (shape.frames, shape.windows) == (14, 1960)
    groups = [[Asked(i, 0, i)] for i in range(4)]
    sampling = FrameSampling(4, 2.0)
    (batch,) = eval_batches(records, tokenizer, shape, ROOM, groups, sampling, max_crops=1, rows=4)
    check_batch(batch.arrays, shape)
    assert batch.arrays["frame_item"][0, :8].tolist() == [0, 0, 1, 1, 2, 2, 2, -1]
    assert batch.arrays["frame_prunable"][0, :8].tolist() == [False] * 4 + [True] * 3 + [False]
    assert (batch.arrays["frames"][0, :4] == 200).all() and batch.arrays["frames"][0, 4:7].max() < 110
    assert batch.arrays["frame_item"][1, :3].tolist() == [0, 0, -1]
    errors = [(m.get("error", ""), m.get("unfit")) for m in _facts([batch])]
    assert errors[0] == errors[1] == ("", None)
    assert errors[2][0].endswith("b.png: no such file") and not errors[2][1]
    assert errors[3][0].startswith("many: takes 12 crops and a row has 10") and errors[3][1]
    (batch,) = eval_batches(
        records[:1], tokenizer, config.evaluation_shape(), ROOM, groups[:1], sampling, max_crops=1, rows=1
    )
    assert _facts([batch])[0]["error"] == "both: has images, for which rows have no room; set crops_per_row above 0"


def test_a_bad_video_is_marked_and_the_rest_asked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    lines = [{"video": v, "messages": [{"question": "Q", "answer": "B"}] * 2} for v in ("a.mp4", "gone.mp4", "a.mp4")]
    (tmp_path / "set.jsonl").write_text("\n".join([*map(json.dumps, lines), "{"]))
    records = open_source(Source(f"jsonl:{tmp_path}/set.jsonl"))
    batches = list(eval_batches(records, tokenizer, SHAPE, ROOM, _groups(records), SAMPLING, max_crops=0, rows=2))
    counts = np.concatenate([(b.lengths > 0).sum(axis=1) for b in batches])
    assert counts.tolist() == [2, 0, 2, 0]
    errors = [m.get("error") for m in _facts(batches)]
    assert [bool(e) for e in errors] == [False, False, True, True, False, False, True]
    assert errors[2].endswith("gone.mp4: no such file") and "is not JSON" in errors[6]
