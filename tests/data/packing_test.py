"""Rows: what they hold, that nothing is lost, that the host's promises hold for any mix of examples."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.data.crops import crop_image
from sttts_jax.data.packing import Item, capacities, fill_rate, fill_row, lengths, pack, stack
from sttts_jax.data.prompt import build_example
from sttts_jax.data.record import Message, RecordError
from sttts_jax.data.schema import BATCH, RowShape, batch_spec, check_batch, empty_rows
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.pruning.budget import n_kept

SHAPE = RowShape(frames=12, items=3, length=260, fraction="0.5", cells=9, size=(6, 6))


def _item(tokenizer: Tokenizer, frames: int, words: int, tag: int = 0) -> Item:
    message = Message("Q " + "x " * words, "B", "user_qa")
    example = build_example(tokenizer, np.arange(frames) / 2, [message] * (1 + tag % 2), cells=SHAPE.cells)
    return Item(example, np.full((frames, *SHAPE.size, 3), tag % 256, np.uint8))


def _rows(items: Iterable[Item], choice: int = 4) -> list[dict[str, np.ndarray]]:
    return [row.arrays for row in pack(items, SHAPE, choice)]


def test_one_row_by_hand(tokenizer: Tokenizer) -> None:
    a, b, c = _item(tokenizer, 2, 1, 7), _item(tokenizer, 0, 3, 8), _item(tokenizer, 3, 2, 9)
    row = fill_row([a, b, c], SHAPE)
    na, nb, nc = (len(i.example.tokens) for i in (a, b, c))
    assert row["frame_item"].tolist() == [0, 0, 1, 1, 1] + [-1] * 7
    assert row["frame_prunable"].tolist() == [True] * 5 + [False] * 7
    assert row["frames"][:, 0, 0, 0].tolist() == [7, 7, 9, 9, 9] + [0] * 7
    assert row["example"].tolist() == [0] * na + [1] * nb + [2] * nc + [-1] * (SHAPE.unpruned - na - nb - nc)
    assert row["cells"][row["cells"] >= 0].tolist() == list(range(5 * 9))  # frames counted within the row
    assert np.array_equal(row["position"][na : na + nb], np.arange(nb))
    assert np.array_equal(row["segment"][na + nb : na + nb + nc], c.example.segment + 200_000)
    assert (row["segment"][na + nb + nc :] == -1).all()
    check_batch(stack([row]), SHAPE)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15)), min_size=1, max_size=25), st.integers(1, 5))
def test_nothing_is_lost_and_every_promise_holds(
    tokenizer: Tokenizer, sizes: list[tuple[int, int]], choice: int
) -> None:
    items = [_item(tokenizer, f, w, tag) for tag, (f, w) in enumerate(sizes)]
    rows = _rows(items, choice)
    batch = stack(rows)
    check_batch(batch, SHAPE)
    found = [
        tuple(row["tokens"][row["example"] == e].tolist()) for row in rows for e in range(row["example"].max() + 1)
    ]
    assert sorted(found) == sorted(tuple(i.example.tokens.tolist()) for i in items)
    for row in rows:
        assert row["example"].max() < SHAPE.items
        kept = sum(n_kept(int((row["frame_item"] == v).sum()), "0.5", 9) for v in range(row["frame_item"].max() + 1))
        dropped = 9 * (row["frame_item"] >= 0).sum() - kept
        assert kept <= SHAPE.kept and (row["example"] >= 0).sum() - dropped <= SHAPE.length
    assert all(0 < share <= 1 for name, share in fill_rate(batch, SHAPE).items() if name == "tokens")


def test_a_row_takes_the_oldest_and_then_what_fits_best(tokenizer: Tokenizer) -> None:
    """None waits for ever, and nothing that fits is left out for one that comes later."""
    frames = [8, 9, 3, 4, 2, 12, 1]
    items = [_item(tokenizer, count, 1, tag) for tag, count in enumerate(frames)]

    def rows(choice: int) -> list[list[int]]:
        made = _rows(items, choice)
        return [[int((row["frame_item"] == v).sum()) for v in range(row["frame_item"].max() + 1)] for row in made]

    assert rows(1) == [[8], [9, 3], [4, 2], [12], [1]]  # in order
    assert rows(4) == [[8, 4], [9, 3], [2, 1], [12]]


def test_rows_fill_by_pruned_length(tokenizer: Tokenizer) -> None:
    """Unpruned, three videos of 4 frames would need more than S tokens; pruned by half they share a row."""
    items = [_item(tokenizer, 4, 4, tag) for tag in range(0, 18, 2)]
    assert sum(len(i.example.tokens) for i in items[:3]) > SHAPE.length
    rows = _rows(items)
    assert len(rows) == 3 and fill_rate(stack(rows), SHAPE)["frames"] == 1


def test_rows_with_images_are_packed_by_crops_and_windows(tokenizer: Tokenizer) -> None:
    """Each image takes 3 crops and 18 windows, so four rows of 6 crops hold eight of them, whatever their frames."""
    shape = RowShape(24, 8, 400, "0.5", 9, (6, 6), crops=6, windows=60, grid=(6, 6))
    image = crop_image(np.zeros((6, 10, 3), np.uint8), shape.size, shape.grid, 2, margins=(1, 1))
    assert image.crops.shape == (3, 6, 6, 3) and len(image.pooling) == 9 + 3 * 5
    items = []
    for tag in range(8):
        frames = tag % 3
        example = build_example(tokenizer, np.arange(frames), [Message("Q", "B", "user_qa")], cells=9, images=[image])
        items.append(Item(example, np.full((3 + frames, 6, 6, 3), tag, np.uint8)))
    rows = [row.arrays for row in pack(items, shape, 4)]
    check_batch(stack(rows), shape)
    assert len(rows) == 4
    assert [(row["pooling"][:, 0] >= 0).sum() for row in rows] == [48] * 4
    assert sorted(int(row["frames"][f, 0, 0, 0]) for row in rows for f in (0,)) == [0, 1, 3, 6]


def test_examples_that_fit_no_row_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecordError, match="takes 13 frames and a row has 12; raise frames_per_row"):
        lengths(_item(tokenizer, 13, 1).example, SHAPE)
    with pytest.raises(RecordError, match="alive and a row has 260; raise row_length"):
        lengths(_item(tokenizer, 1, 400).example, SHAPE)


def test_row_shape_follows_from_the_budget() -> None:
    assert SHAPE.unpruned == 260 + 54 and capacities(SHAPE)["unpruned"] == SHAPE.unpruned
    assert SHAPE.kept == max(n_kept(a, "0.5", 9) + n_kept(b, "0.5", 9) + n_kept(12 - a - b, "0.5", 9)
                             for a in range(1, 11) for b in range(1, 12 - a))  # fmt: skip
    spec = batch_spec(SHAPE, 2)
    assert set(spec) == set(BATCH) and spec["frames"] == ((2, 12, 6, 6, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 1"):
        RowShape(frames=0, items=1, length=1, fraction="0", cells=1, size=(1, 1))


def _broken(tokenizer: Tokenizer, name: str) -> dict[str, np.ndarray]:
    batch = stack([fill_row([_item(tokenizer, 2, 1), _item(tokenizer, 3, 1)], SHAPE)])
    changed = {
        "frame_item": lambda x: np.where(x == 1, 2, x).astype(np.int32),
        "cells": lambda x: np.where(x == 3, 4, x).astype(np.int32),
        "targets": lambda x: x + 1,
        "segment": lambda x: x + 100_000,
        "example": lambda x: x[:, ::-1].copy(),
        "tokens": lambda x: x.astype(np.int64),
        "weights": lambda x: x[:, :-1],
    }
    return {**batch, name: changed[name](batch[name])}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frame_item", "frame_item must count"),
        ("cells", "exactly one token"),
        ("targets", "targets must be 0"),
        ("segment", "segment must be"),
        ("example", "examples must come in order"),
        ("tokens", "must be int32"),
        ("weights", r"must be float32 \[1, 314\]"),
    ],
)
def test_the_checker_names_what_is_wrong(tokenizer: Tokenizer, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(_broken(tokenizer, name), SHAPE)


def test_the_checker_wants_all_arrays() -> None:
    batch = empty_rows(SHAPE, 1)
    check_batch(batch, SHAPE)
    del batch["vision"]
    with pytest.raises(ValueError, match="differing: .'vision'"):
        check_batch(batch, SHAPE)
