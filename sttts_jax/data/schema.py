"""What a batch is: the arrays that go to the device, their shapes, and what is always true of them.

A row packs several examples; the device drops the tokens of pruned cells and compacts each row from U to S tokens.
Because the budget is exact, the host already knows that everything fits: that is what `check_batch` checks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sttts_jax.pruning.budget import n_drop, n_kept, row_capacity

EXAMPLE_STRIDE = 100_000  # segment ids of example e begin here times e
PREFIX_SEGMENT = 10_000  # segment id of a message tree's prefix; branch b has id b


class Feature(NamedTuple):
    dtype: str
    axes: str  # after the leading B: F frames, U unpruned tokens, h w picture
    padding: int
    meaning: str


BATCH = {
    "frames": Feature("uint8", "F h w 3", 0, "resized frames; normalised and cut into patches on the device"),
    "frame_item": Feature("int32", "F", -1, "which video of the row, 0.., contiguous and in order"),
    "frame_prunable": Feature("bool", "F", 0, "frame of a video (and not a crop of an image)"),
    "tokens": Feature("int32", "U", 0, "input ids: text, markers, one <im_patch> a cell"),
    "targets": Feature("int32", "U", 0, "the next token; EOS at the end of a branch; 0 where the weight is 0"),
    "weights": Feature("float32", "U", 0, "loss weight of the target"),
    "cells": Feature("int32", "U", -1, "f * C + c for the token of cell c of the row's frame f"),
    "vision": Feature("bool", "U", 0, "vision tokens see each other in both directions"),
    "example": Feature("int32", "U", -1, "which example of the row, 0.."),
    "segment": Feature("int32", "U", -1, "message tree: a query sees keys whose segment is no smaller"),
    "position": Feature("int32", "U", 0, "position before pruning; restarts in every example, shared by branches"),
}


@dataclass(frozen=True)
class Example:
    """One video's tokens before pruning, not padded. Arrays [n]; `cells` counts frames from 0 within the example."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    cells: np.ndarray
    vision: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    frames: int

    def alive(self, fraction: str | float, cells: int) -> int:
        """Tokens left after pruning."""
        return len(self.tokens) - n_drop(self.frames, fraction, cells)


@dataclass(frozen=True)
class RowShape:
    """The static sizes of a row. K and U follow from the rest."""

    frames: int  # F
    items: int  # V
    length: int  # S
    fraction: str  # of cells removed, a decimal
    cells: int  # C
    size: tuple[int, int]  # height, width of a frame

    def __post_init__(self) -> None:
        if min(self.frames, self.items, self.length, self.cells, *self.size) < 1:
            raise ValueError(f"every size of a row must be at least 1, got {self}")

    @property
    def kept(self) -> int:
        """K: the most cells that survive in a row."""
        return row_capacity(self.frames, self.fraction, self.cells, self.items)

    @property
    def unpruned(self) -> int:
        """U: S and the most cells that a row can drop (one video drops no fewer than several sharing its frames)."""
        return self.length + n_drop(self.frames, self.fraction, self.cells)

    def axes(self, rows: int) -> dict[str, int]:
        return {"B": rows, "F": self.frames, "U": self.unpruned, "h": self.size[0], "w": self.size[1], "3": 3}


def batch_spec(shape: RowShape, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape [B, ...], dtype) of every array of a batch."""
    sizes = shape.axes(rows)
    return {name: (tuple(sizes[a] for a in ["B", *f.axes.split()]), np.dtype(f.dtype)) for name, f in BATCH.items()}


def empty_rows(shape: RowShape, rows: int) -> dict[str, np.ndarray]:
    """A batch of nothing but padding."""
    return {name: np.full(dims, BATCH[name].padding, dtype) for name, (dims, dtype) in batch_spec(shape, rows).items()}


def kept_cells(frame_item: np.ndarray, frame_prunable: np.ndarray, shape: RowShape) -> int:
    """Cells of one row that survive: int32 [F], bool [F] -> sum over its videos of n_kept, and every cell of its
    images.
    """
    total = 0
    for item in range(int(frame_item.max(initial=-1)) + 1):
        mine = frame_item == item
        prunable = bool(frame_prunable[mine].all())
        total += n_kept(int(mine.sum()), shape.fraction if prunable else 0, shape.cells)
    return total


def check_batch(batch: dict[str, np.ndarray], shape: RowShape) -> None:
    """Raises ValueError, naming the array and the row, unless the batch is what this module promises."""
    if set(batch) != set(BATCH):
        raise ValueError(f"the batch must hold exactly {sorted(BATCH)}; differing: {sorted(set(batch) ^ set(BATCH))}")
    rows = len(batch["tokens"])
    for name, (dims, dtype) in batch_spec(shape, rows).items():
        if batch[name].shape != dims or batch[name].dtype != dtype:
            raise ValueError(
                f"batch[{name!r}] must be {dtype} {list(dims)}, got {batch[name].dtype} {list(batch[name].shape)}"
            )
    for row in range(rows):
        problem = _row_problem({name: value[row] for name, value in batch.items()}, shape)
        if problem:
            raise ValueError(f"row {row} of the batch: {problem}")


def _row_problem(row: dict[str, np.ndarray], shape: RowShape) -> str | None:
    items, real = row["frame_item"], row["example"] >= 0
    used = items[items >= 0]
    n_tokens = int(real.sum())
    if (items[len(used) :] >= 0).any() or (len(used) and (used[0] != 0 or not np.isin(np.diff(used), (0, 1)).all())):
        return "frame_item must count 0, 0, .., 1, 1, .. and then stay -1"
    if len(used) and used[-1] >= shape.items:
        return f"holds {used[-1] + 1} videos, more than items={shape.items}"
    if real[n_tokens:].any() or (np.diff(row["example"][:n_tokens]) < 0).any():
        return "examples must come in order, padding last"
    expected = np.arange(len(used) * shape.cells)
    if not np.array_equal(
        np.sort(row["cells"][row["cells"] >= 0]), expected[np.repeat(row["frame_prunable"][: len(used)], shape.cells)]
    ):
        return "every cell of every video frame must have exactly one token"
    if (row["targets"][row["weights"] == 0] != 0).any() or (row["weights"] < 0).any() or row["weights"][~real].any():
        return "targets must be 0 where the weight is 0, weights not negative, and padding without weight"
    if not np.array_equal(row["segment"][:n_tokens] // EXAMPLE_STRIDE, row["example"][:n_tokens]):
        return f"segment must be {EXAMPLE_STRIDE} * example + the segment within the example"
    kept = kept_cells(items, row["frame_prunable"], shape)
    if kept > shape.kept:
        return f"keeps {kept} cells, more than K={shape.kept}"
    alive = n_tokens - (len(used) * shape.cells - kept)
    if alive > shape.length:
        return f"holds {alive} tokens after pruning, more than S={shape.length}"
    return None
