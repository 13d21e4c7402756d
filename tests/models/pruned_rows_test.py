"""Rows after the drop, against a slow version that walks over the tokens one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.models.pruned_rows import PrunedRows, prune_rows
from sttts_jax.models.vlm import frame_rows
from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.pack import take_batch
from sttts_jax.pruning.select import Kept, select_cells
from tests.models.batches import Sizes, Talk, make_batch

SIZES = Sizes(frames=5, cells=4, unpruned=60, vocab=30)
TOTAL = SIZES.frames * SIZES.cells
FRACTION = as_fraction("0.6")
WINDOWS = 6
FIELDS = ("tokens", "targets", "weights", "example", "segment", "vision")

MIXES = {
    "one video": [Talk(frames=5)],
    "two videos": [Talk(frames=3, branches=(4,), seed=1), Talk(frames=2, lead=0, branches=(2, 3), seed=2)],
    "a tree": [Talk(frames=4, branches=(3, 1, 4), seed=3)],
    "text only": [Talk(seed=4), Talk(branches=(2, 2), seed=5)],
    "text between": [Talk(seed=6), Talk(frames=2, seed=7), Talk(seed=8), Talk(frames=1, branches=(1,), seed=9)],
    "an image": [Talk(frames=2, image=True, windows=5, seed=10), Talk(frames=3, seed=11)],
    "image after video": [Talk(frames=2, seed=12), Talk(frames=1, image=True, windows=6, branches=(2, 1), seed=13)],
    "nothing": [],
}


def _capacity(batch: dict[str, np.ndarray]) -> int:
    images = (batch["frame_item"] >= 0) & ~batch["frame_prunable"]
    return TOTAL if images.any() else row_capacity(SIZES.frames, FRACTION, SIZES.cells, items=2)


@functools.cache
def _program(positions: str, capacity: int, length: int):
    def run(batch: dict[str, jax.Array], scores: jax.Array) -> tuple[Kept, PrunedRows]:
        rows = frame_rows(batch)
        kept = select_cells(scores, rows, FRACTION, capacity)
        return kept, prune_rows(batch, kept, length, positions, WINDOWS)

    return jax.jit(run)


def _scores(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, SIZES.frames, SIZES.cells)).astype(np.float32)


def _slow(row: dict[str, np.ndarray], mask: np.ndarray, capacity: int, length: int, dense: bool) -> dict:
    """One token at a time; lists without padding."""
    out: dict[str, list] = {name: [] for name in (*FIELDS, "positions", "visual")}
    stream = {int(cell): i for i, cell in enumerate(np.flatnonzero(mask.reshape(-1)))}
    gone: dict[int, int] = {}
    for t in range(SIZES.unpruned):
        example, cell = int(row["example"][t]), int(row["cells"][t])
        if example < 0:
            continue
        if 0 <= cell < TOTAL and cell not in stream:
            gone[example] = gone.get(example, 0) + 1
            continue
        for name in FIELDS:
            out[name].append(row[name][t])
        out["positions"].append(row["position"][t] - gone.get(example, 0) * dense)
        text, pooled = cell < 0, cell >= TOTAL
        out["visual"].append(capacity + WINDOWS if text else capacity + cell - TOTAL if pooled else stream[cell])
    assert len(out["tokens"]) <= length
    return out


PADDED = {"example": -1, "segment": -1}


def _check(rows: list[list[Talk]], positions: str, length: int, seed: int = 0) -> tuple[dict, Kept, PrunedRows]:
    batch = make_batch(rows, SIZES)
    capacity = _capacity(batch)
    kept, got = _program(positions, capacity, length)(batch, _scores(len(rows), seed))
    got_fields = {**got._asdict(), **got.rule._asdict()}
    for i in range(len(rows)):
        row = {name: value[i] for name, value in batch.items()}
        want = _slow(row, np.asarray(kept.mask[i]), capacity, length, positions == "dense")
        for name, values in want.items():
            fill = capacity + WINDOWS if name == "visual" else PADDED.get(name, 0)
            np.testing.assert_array_equal(got_fields[name][i], values + [fill] * (length - len(values)), err_msg=name)
        inverse = np.full(capacity + WINDOWS, length)
        for token, visual in enumerate(want["visual"]):
            if visual < len(inverse):
                inverse[visual] = token
        np.testing.assert_array_equal(got.inverse[i], inverse)
        np.testing.assert_array_equal(got.rule.order[i], np.arange(length))
    return batch, kept, got


@pytest.mark.parametrize("positions", ["dense", "original"])
def test_all_mixes_in_one_batch(positions: str) -> None:
    _check(list(MIXES.values()), positions, 50)


@pytest.mark.parametrize("positions", ["dense", "original"])
def test_the_smallest_length_that_holds_the_row(positions: str) -> None:
    """5 frames of 4 cells keep 8 of 20; 2 + 5 + 3 tokens of text and markers: 18 in all."""
    _check([MIXES["one video"]], positions, 18)


@st.composite
def talks(draw: st.DrawFn) -> list[Talk]:
    out, frames, room = [], SIZES.frames, SIZES.unpruned
    for _ in range(draw(st.integers(0, 4))):
        lead, branches = draw(st.integers(0, 3)), tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
        own = draw(st.integers(0, frames))
        size = lead + sum(branches) + own * (SIZES.cells + 1)
        if size <= room and sum(t.frames > 0 for t in out) + (own > 0) <= 2:
            out.append(Talk(own, lead, branches, seed=draw(st.integers(0, 99))))
            frames, room = frames - own, room - size
    return out


@settings(deadline=None, max_examples=60)
@given(st.lists(talks(), min_size=2, max_size=2), st.sampled_from(["dense", "original"]), st.integers(0, 2**31))
def test_any_mix(rows: list[list[Talk]], positions: str, seed: int) -> None:
    _check(rows, positions, SIZES.unpruned, seed)  # a row of text alone loses nothing


def test_dense_positions_have_no_gaps_and_branches_start_together() -> None:
    _, _, got = _check([MIXES["a tree"]], "dense", 50)
    alive = np.asarray(got.rule.example[0] >= 0)
    position, segment = np.asarray(got.positions[0])[alive], np.asarray(got.rule.segment[0])[alive]
    prefix = position[segment == 10_000]
    np.testing.assert_array_equal(prefix, np.arange(len(prefix)))
    for branch in range(3):
        mine = position[segment == branch]
        np.testing.assert_array_equal(mine, len(prefix) + np.arange(len(mine)))


def test_original_positions_are_those_of_the_unpruned_row() -> None:
    batch, kept, got = _check([MIXES["two videos"]], "original", 50)
    cells = batch["cells"][0]
    alive = (batch["example"][0] >= 0) & ((cells < 0) | np.asarray(kept.mask[0]).reshape(-1)[np.maximum(cells, 0)])
    np.testing.assert_array_equal(got.positions[0][: alive.sum()], batch["position"][0][alive])


def test_visual_rows_land_on_their_tokens_and_take_one_gradient_each() -> None:
    rows = list(MIXES.values())
    batch, kept, got = _check(rows, "dense", 50)
    capacity = kept.ids.shape[1]
    # A visual row that knows its own cell, or window.
    names = jnp.concatenate([kept.ids, jnp.broadcast_to(TOTAL + jnp.arange(WINDOWS), (len(rows), WINDOWS))], axis=1)
    landed = np.asarray(take_batch(names[..., None].astype(jnp.float32) + 1, got.visual, got.inverse))[..., 0] - 1
    for i in range(len(rows)):
        want = [c for c in batch["cells"][i] if c >= TOTAL or (c >= 0 and kept.mask[i].reshape(-1)[c])]
        np.testing.assert_array_equal(landed[i][landed[i] >= 0], want)
        patches = np.asarray(got.tokens[i]) == SIZES.vocab
        np.testing.assert_array_equal(landed[i] >= 0, patches)

    weight = np.random.default_rng(0).standard_normal((len(rows), 50, 1)).astype(np.float32)
    x = jnp.zeros((len(rows), capacity + WINDOWS, 1))
    grad = np.asarray(jax.grad(lambda x: jnp.sum(take_batch(x, got.visual, got.inverse) * weight))(x))[..., 0]
    want = np.zeros_like(grad)
    for i, token in np.argwhere(np.asarray(got.visual) < capacity + WINDOWS):
        want[i, got.visual[i, token]] += weight[i, token, 0]
    np.testing.assert_array_equal(grad, want)


def test_what_stands_in_padding_does_not_matter() -> None:
    batch, kept, want = _check(list(MIXES.values()), "dense", 50)
    empty = batch["example"] < 0
    for name in ("tokens", "targets", "position", "segment"):
        batch[name][empty] = 7
    batch["weights"][empty], batch["vision"][empty] = 1.0, True
    got = _program("dense", kept.ids.shape[1], 50)(batch, _scores(len(MIXES), 0))[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_loss_weight_is_kept_whole() -> None:
    batch, _, got = _check(list(MIXES.values()), "dense", 50)
    np.testing.assert_allclose(got.weights.sum(axis=1), batch["weights"].sum(axis=1), rtol=1e-6)
