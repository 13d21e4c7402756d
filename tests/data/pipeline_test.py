"""The whole input pipeline on made-up clips: order, resuming, sharing, bad records."""

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sttts_jax.ckpt.data_state import merged
from sttts_jax.data.config import DataConfig, Source, data_config
from sttts_jax.data.pipeline import Batches, train_batches
from sttts_jax.data.reader import TooManyBadRecords
from sttts_jax.data.schema import check_batch
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def config(data_dir: str) -> DataConfig:
    return data_config(
        sources=(("shapes_video_qa", 1.0, "train", data_dir),),
        image_size=24,
        frames_per_row=18,
        items_per_row=3,
        row_length=1500,
        rows=2,
        max_messages=3,
        packing_rows=3,
    )


def _same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


def _take(batches: Batches, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The batch whose rows several processes made."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _videos(batches: list[dict[str, np.ndarray]]) -> list[bytes]:
    """A fingerprint of every video that came by: its frames in full."""
    found = []
    for batch in batches:
        for frames, item in zip(batch["frames"], batch["frame_item"], strict=True):
            found += [frames[item == v].tobytes() for v in range(item.max() + 1)]
    return found


def test_batches_keep_the_contract(config: DataConfig, tokenizer: Tokenizer) -> None:
    batches = train_batches(config, tokenizer)
    for batch in _take(batches, 4):
        check_batch(batch, config.row_shape)
        assert len(batch["tokens"]) == 2 and batch["weights"].sum() > 0
    stats = batches.stats()
    assert stats["bad_records"] == 0 and 0.5 < stats["fill_frames"] <= 1 and 0 < stats["fill_tokens"] <= 1


def test_the_order_depends_on_the_seed_alone(config: DataConfig, tokenizer: Tokenizer) -> None:
    first = _take(train_batches(config, tokenizer), 3)
    for same in (replace(config, threads=4, prefetch=1), replace(config, cache=True)):
        assert all(_same(a, b) for a, b in zip(first, _take(train_batches(same, tokenizer), 3), strict=True))
    other = _take(train_batches(replace(config, seed=1), tokenizer), 3)
    assert not any(_same(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_resuming_is_exact(config: DataConfig, tokenizer: Tokenizer, done: int) -> None:
    whole = train_batches(config, tokenizer)
    _take(whole, done)
    state = json.loads(json.dumps(whole.get_state()))
    expected = _take(whole, 5)
    resumed = train_batches(config, tokenizer)
    _take(resumed, 2)  # wherever it stood
    resumed.set_state(state)
    assert all(_same(a, b) for a, b in zip(expected, _take(resumed, 5), strict=True))


def test_a_state_of_another_run_is_refused(config: DataConfig, tokenizer: Tokenizer) -> None:
    state = train_batches(config, tokenizer).get_state()
    for other in (replace(config, seed=5), replace(config, sources=(replace(config.sources[0], split="test"),))):
        with pytest.raises(ValueError, match="the saved data position has"):
            train_batches(other, tokenizer).set_state(state)
    own = train_batches(config, tokenizer, rows=[1])
    with pytest.raises(ValueError, match="lacks row 1 of 1; its files are not those of one step"):
        own.set_state({**state, "rows": {"0": state["rows"]["0"]}})
    with pytest.raises(ValueError, match="of an earlier version, whose order of data depended on the number of proc"):
        own.set_state({"shard_index": 0, "iterator": {}, "sources": state["sources"]})


def test_an_epoch_holds_every_clip_once(config: DataConfig, tokenizer: Tokenizer) -> None:
    """24 clips in rows of two, twelve rows: a batch is an epoch."""
    lone = replace(config, items_per_row=2, frames_per_row=16, packing_rows=1, rows=12)
    first, second = (_videos(b) for b in np.array_split(_take(train_batches(lone, tokenizer), 2), 2))
    assert len(first) == len(set(first)) == 24 and set(first) == set(second)
    assert first != second  # another order


def test_the_batch_is_the_same_whoever_makes_its_rows(config: DataConfig, tokenizer: Tokenizer) -> None:
    """One process, two, or four; also rows that are no neighbours."""
    four = replace(config, rows=4, packing_rows=2)
    whole = _take(train_batches(four, tokenizer), 3)
    for numbers in ([0, 1], [2, 3], [1, 3], [2]):
        made = _take(train_batches(four, tokenizer, rows=numbers), 3)
        for batch, part in zip(whole, made, strict=True):
            assert all(np.array_equal(batch[name][numbers], part[name]) for name in batch)
    for wrong in ([], [4], [-1], [1, 0], [1, 1]):
        with pytest.raises(ValueError, match="must be different numbers from 0 to below data.rows=4"):
            train_batches(four, tokenizer, rows=wrong)


def test_any_number_of_processes_goes_on(config: DataConfig, tokenizer: Tokenizer) -> None:
    """Two make two batches, one a third, four a fourth: the same rows as if nobody had changed, each record of the
    mixture once.
    """
    four = replace(config, rows=4, packing_rows=3)
    whole = _take(train_batches(four, tokenizer), 4)
    state, made = None, list[dict[str, np.ndarray]]()
    for processes, count in ((2, 2), (1, 1), (4, 1)):
        size, states, parts = 4 // processes, [], []
        for process in range(processes):
            batches = train_batches(four, tokenizer, rows=range(process * size, (process + 1) * size))
            if state is not None:
                batches.set_state(state)
            parts.append(_take(batches, count))
            states.append(json.loads(json.dumps(batches.get_state())))
        state = functools.reduce(merged, states)
        made += [
            {name: np.concatenate([one[name] for one in batch]) for name in batch[0]}
            for batch in zip(*parts, strict=True)
        ]
    assert len(made) == 4 and all(_same(a, b) for a, b in zip(whole, made, strict=True))


def test_a_resume_before_the_first_row_of_another_one_reads_again_what_waits(
    config: DataConfig, tokenizer: Tokenizer
) -> None:
    batches = train_batches(config, tokenizer)
    _take(batches, 3)
    state = batches.get_state()
    again = train_batches(config, tokenizer)
    again.set_state(state)
    assert again.get_state() == state
    assert any(row["waiting"] for row in state["rows"].values())


def test_messages_are_drawn_anew_each_epoch(config: DataConfig, tokenizer: Tokenizer) -> None:
    one = replace(config, sources=(replace(config.sources[0], split="validation"),), max_messages=2, items_per_row=1)
    texts = [
        tuple(row[row > 0].tolist()) for batch in _take(train_batches(one, tokenizer), 8) for row in batch["tokens"]
    ]
    assert len(set(texts)) > 8  # 16 visits of 4 clips


def _jsonl(folder: Path, videos: list[str]) -> str:
    lines = [{"video": v, "messages": [{"question": f"Q{i}", "answer": "B"}]} for i, v in enumerate(videos)]
    file = folder / "set.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return f"jsonl:{file}"


def test_bad_records_are_counted_named_once_and_skipped(
    config: DataConfig, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    name = _jsonl(tmp_path, ["good.mp4"] * 15 + ["gone.mp4"])
    mixed = replace(config, sources=(Source(name),), bad_share=0.5, rows=8)
    batches = train_batches(mixed, tokenizer)
    with caplog.at_level(logging.WARNING, "sttts_jax.data"):
        for batch in _take(batches, 4):
            check_batch(batch, mixed.row_shape)
    stats = batches.stats()
    assert stats["bad_records"] >= 4 and 12 < stats["records"] / stats["bad_records"] < 20
    warnings = [r.getMessage() for r in caplog.records]
    assert warnings == [f"bad record skipped: {tmp_path}/set.jsonl:16: {tmp_path}/gone.mp4: no such file"]


def test_batches_name_their_records(config: DataConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Those of the newest batch, also after a resume: as many as there are examples, and the right ones."""
    lines = [{"messages": [{"question": f"Q{n}", "answer": str(n)}]} for n in range(9)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    batches = train_batches(replace(config, sources=(Source(f"jsonl:{tmp_path}/set.jsonl"),)), tokenizer)
    state = None
    for number in range(4):
        if number == 2:
            state = batches.get_state()
        batch = next(batches)
        said = []
        for tokens, example in zip(batch["tokens"], batch["example"], strict=True):
            said += [tokenizer.decode(tokens[example == e].tolist()) for e in range(example.max() + 1)]
        where = [int(name.removeprefix(f"{tmp_path}/set.jsonl:")) - 1 for name in batches.names]
        assert len(said) == len(where) > 2 and all(f"Q{n}" in text for n, text in zip(where, said, strict=True))
    last = batches.names
    batches.set_state(state)
    next(batches), next(batches)
    assert batches.names == last


def test_too_many_bad_records_stop_the_run(config: DataConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8))
    name = _jsonl(tmp_path, ["good.mp4", "gone.mp4"])
    with pytest.raises(TooManyBadRecords, match=r"of 2\d records are unusable, more than bad_share=0.1; mend the data"):
        _take(train_batches(replace(config, sources=(Source(name),)), tokenizer), 50)


def test_an_example_that_no_row_holds_is_a_bad_record(config: DataConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"messages": [{"question": "x " * 9000, "answer": "B"}]}))
    long = replace(config, sources=(Source(f"jsonl:{tmp_path}/set.jsonl"),))
    with pytest.raises(TooManyBadRecords, match="ends after the 1500 tokens of a row; raise row_length"):
        next(train_batches(long, tokenizer))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sources": ()}, "data.sources is empty"),
        ({"sources": (("shapes_video_qa", 0.0),)}, "has weight 0.0"),
        ({"sources": (("shapes_video_qa", float("nan")),)}, "has weight nan; give a positive number"),
        ({"sources": (("shapes_video_qa", float("inf")),)}, "has weight inf"),
        ({"sources": (("shapes_video_qa", "1"),)}, "has weight '1'"),
        ({"sources": (("shapes_video_qa", 1.0, None),)}, "has split None; give a text"),
        ({"sources": (5,)}, r"data.sources: 5 must be \(name, weight, split\)"),
        ({"sources": (("shapes_video_qa", 1.0, "train", "data", 1),)}, r"must be \(name, weight, split\)"),
        ({"fraction": "1.5"}, "data.fraction=1.5"),
        ({"rows": 0}, "data.rows=0 must be a whole number from 1 up"),
        ({"rows": 2.0}, "data.rows=2.0 must be a whole number"),
        ({"max_fps": 0}, "data.max_fps=0 must be positive"),
        ({"bad_share": 2}, "data.bad_share=2 must be a share"),
        ({"max_frames": 99}, "data.frames_per_row=18 cannot hold max_frames=99"),
        ({"row_length": 300}, "data.row_length=300 has no room for text beside the 340 vision tokens"),
        ({"frames": 3}, "data has no setting frames; known are sources, max_frames"),
    ],
)
def test_settings_that_cannot_work(config: DataConfig, setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_config(**{**{k: v for k, v in vars(config).items()}, **setting})
