"""Buckets of frames and questions that share a video: the same answers, one program a bucket."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.video import Clip
from sttts_jax.evals import questions as harness_questions
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions, frame_ladder, task_source
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.checkpoint import Checkpoint, Setting

SETTING = Setting("0.5", 6, 2.0)
FRAMES = {"short": 2, "middle": 3, "long": 5}  # sampled of clips of 0.5, 1 and 2 seconds
PICTURES = {"short": 2, "middle": 4, "long": 8}
ROWS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 short clips, 1 middling one, 8 long ones; three are asked about in several lines, which do not all follow each
    other; text alone, and a video that is not there."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    names = [f"{kind}{number}" for number in range(8) for kind in ("short", "long")] + ["middle0"]
    for name in names:
        frames = rng.integers(0, 255, (PICTURES[name[:-1]], 48, 64, 3), np.uint8)
        (folder / f"{name}.mp4").write_bytes(encode_mp4(frames, 4))

    def line(video: str | None, *questions: str) -> dict:
        messages = [{"question": question, "answer": "red"} for question in questions]
        return {"messages": messages} | ({} if video is None else {"video": f"{video}.mp4"})

    lines = [line(name, f"What is in {name}?") for name in names]
    lines += [line("short0", "Which color is it?", "Where does the ball go?"), line("absent", "Is it there?")]
    lines += [line("long1", *(f"What comes {word}?" for word in ("first", "second", "third", "fourth", "last")))]
    lines += [line(None, "What color is the sky?"), line("short0", "How many?")]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def _questions(checkpoint: Checkpoint, folder: Path) -> Questions:
    task = find_task(f"jsonl:{folder / 'own.jsonl'}")
    return Questions(task, task_source(task, checkpoint.data), checkpoint.tokenizer, checkpoint.data)


@pytest.fixture(scope="module")
def single(checkpoints: dict[str, Checkpoint], folder: Path) -> list[dict[str, Any]]:
    """The answers where every question has a row of its own, and all rows one shape."""
    questions = _questions(checkpoints["scorer"], folder)
    result, answers = Harness(checkpoints["scorer"], ROWS, together=1).run(questions, SETTING)
    assert result.compilations == 1
    assert result.buckets == [{**result.buckets[0], "frames": 6, "rows": len(questions.asked)}]
    assert len({a.get("prediction") for a in answers}) > 3, "constant answers prove little"
    return answers


def test_answers_depend_neither_on_buckets_nor_on_shared_rows(
    checkpoints: dict[str, Checkpoint], folder: Path, single: list[dict[str, Any]]
) -> None:
    questions = _questions(checkpoints["scorer"], folder)
    harness = Harness(checkpoints["scorer"], ROWS, steps=[2])
    result, answers = harness.run(questions, SETTING)
    assert answers == single
    assert result.compilations == len(result.buckets) == 2
    assert [(b["frames"], b["rows"]) for b in result.buckets] == [(2, 10), (6, 10)]
    assert [a["number"] for a in answers] == list(range(len(questions.asked)))
    assert [a["frames"] for a in answers[:17]] == [2, 5] * 8 + [3]
    assert [bad["error"].rpartition("/")[2] for bad in result.bad] == ["absent.mp4: no such file"]
    again, repeated = harness.run(questions, SETTING)
    assert again.compilations == 0 and repeated == answers


def test_clips_longer_than_announced_are_asked_in_the_largest_rows(
    checkpoints: dict[str, Checkpoint], folder: Path, single: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_questions, "probe_clip", lambda *_, **__: Clip(0.0, 0.25))
    questions = _questions(checkpoints["scorer"], folder)
    assert [(b.frames, len(b.groups)) for b in questions.plan(SETTING, [2, 6], ROWS)] == [(2, 20), (6, 0)]
    result, got = Harness(checkpoints["scorer"], ROWS, steps=[2]).run(questions, SETTING)
    assert got == single and result.compilations == len(result.buckets) == 2


def test_every_question_is_planned_once_in_the_smallest_bucket(
    checkpoints: dict[str, Checkpoint], folder: Path
) -> None:
    questions = _questions(checkpoints["scorer"], folder)
    records = [questions.records[asked.record] for asked in questions.asked]
    for ladder in ([6], [2, 6], [2, 4, 6], [1, 2, 3, 4, 5, 6]):
        for rows, together in ((1, 1), (1, 3), (8, 4), (100, 2)):
            plan = questions.plan(SETTING, ladder, rows, together)
            groups = [group for bucket in plan for group in bucket.groups]
            assert sorted(number for group in groups for number in group) == list(range(len(questions.asked)))
            assert all(len({records[number].video for number in group}) == 1 for group in groups)
            assert max(map(len, groups)) == plan[0].most <= together
            assert plan[-1].frames == ladder[-1]
            used = [bucket for bucket in plan if bucket.groups]
            assert all(len(bucket.groups) >= rows for bucket in used[:-1])
            for bucket in used:
                names = {Path(records[n].video or "").stem[:-1] for group in bucket.groups for n in group}
                frames = [FRAMES.get(name, 0) for name in names]
                assert max(frames) <= bucket.frames
                assert rows > 1 or bucket.frames == next(f for f in ladder if f >= max(frames))


@given(st.integers(1, 500), st.lists(st.integers(1, 500), max_size=5))
def test_ladders_end_at_the_most_frames(most: int, steps: list[int]) -> None:
    for ladder in (frame_ladder(most, steps), frame_ladder(most)):
        assert ladder[-1] == most and ladder == sorted(set(ladder))
    assert set(frame_ladder(most, steps)[:-1]) == ({s for s in steps if s < most} if steps else set(ladder[:-1]))
    assert frame_ladder(100) == [8, 16, 32, 64, 100] and frame_ladder(8) == [8] and frame_ladder(4) == [4]
