"""What a batch is: the arrays that go to the device, their shapes, and what is always true of them.

A row packs several examples; the device drops the tokens of pruned cells and compacts each row from U to S tokens.
Because the budget is exact, the host already knows that everything fits: that is what `check_batch` checks.

An image is a few crops, frames of its own item whose cells all survive. The tokens of an image do not stand for cells
but for windows of 2 x 2 patches, which `pooling` lists; only rows with room for images have that array.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sttts_jax.pruning.budget import MOST_FRAMES, n_drop, n_kept, row_capacity

EXAMPLE_STRIDE = 100_000  # segment ids of example e begin here times e
PREFIX_SEGMENT = 10_000  # segment id of a message tree's prefix; branch b has id b
POOL = (2, 2)  # patches of an image's window, rows and columns


class Feature(NamedTuple):
    dtype: str
    axes: str  # after the leading B: F frames, U unpruned tokens, P windows, h w picture
    padding: int
    meaning: str


BATCH = {
    "frames": Feature("uint8", "F h w 3", 0, "resized frames; normalised and cut into patches on the device"),
    "frame_item": Feature("int32", "F", -1, "which video or image of the row, 0.., contiguous and in order"),
    "frame_prunable": Feature("bool", "F", 0, "frame of a video (and not a crop of an image)"),
    "tokens": Feature("int32", "U", 0, "input ids: text, markers, one <im_patch> a cell"),
    "targets": Feature("int32", "U", 0, "the next token; EOS at the end of a branch; 0 where the weight is 0"),
    "weights": Feature("float32", "U", 0, "loss weight of the target"),
    "cells": Feature("int32", "U", -1, "f * C + c: cell c of the row's frame f; F * C + p: window p"),
    "vision": Feature("bool", "U", 0, "vision tokens see each other in both directions"),
    "example": Feature("int32", "U", -1, "which example of the row, 0.."),
    "segment": Feature("int32", "U", -1, "message tree: a query sees keys whose segment is no smaller"),
    "position": Feature("int32", "U", 0, "position before pruning; restarts in every example, shared by branches"),
}
POOLING = Feature("int32", "P 4", -1, "the patches f * N + n of an image's window p")


@dataclass(frozen=True)
class Example:
    """The tokens of one video, or some images, or both, before pruning, not padded. Arrays [n].

    Its crops and then its frames are counted from 0, and its windows; `cells` and `pooling` [P, 4] are as in BATCH with
    these as the row's.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    cells: np.ndarray
    vision: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    frames: int  # of the video
    crops: tuple[int, ...] = ()  # of each image; all crops come before the frames
    pooling: np.ndarray = field(default_factory=lambda: np.zeros((0, POOL[0] * POOL[1]), np.int32))

    @property
    def pictures(self) -> int:
        """Crops and frames."""
        return sum(self.crops) + self.frames

    def alive(self, fraction: str | float, cells: int) -> int:
        """Tokens left after pruning."""
        return len(self.tokens) - n_drop(self.frames, fraction, cells)


@dataclass(frozen=True)
class RowShape:
    """The static sizes of a row. K and U follow from the rest."""

    frames: int  # F, frames and crops
    items: int  # V, examples and so videos
    length: int  # S
    fraction: str  # of cells removed, a decimal
    cells: int  # C
    size: tuple[int, int]  # height, width of a frame
    crops: int = 0  # most of F that may be crops of images
    windows: int = 0  # P
    grid: tuple[int, int] = (27, 27)  # patches of a frame, rows and columns; only images need it

    def __post_init__(self) -> None:
        if min(self.frames, self.items, self.length, self.cells, *self.size) < 1:
            raise ValueError(f"every size of a row must be at least 1, got {self}")
        if self.frames > MOST_FRAMES:
            raise ValueError(f"a row of {self.frames:,} frames is too long; give at most {MOST_FRAMES:,}")
        if not 0 <= self.crops <= self.frames or self.windows < 0 or (self.crops > 0) != (self.windows > 0):
            raise ValueError(
                f"a row of {self.frames} frames cannot have {self.crops} crops with {self.windows} windows; crops are "
                "some of the frames, and both are 0 or neither"
            )
        if self.windows and (min(self.grid) < 1 or self.size[0] % self.grid[0] or self.size[1] % self.grid[1]):
            raise ValueError(
                f"frames of {self.size[0]} x {self.size[1]} pixels do not divide into {self.grid[0]} x {self.grid[1]} "
                "patches; give the model's image size and grid"
            )

    @property
    def kept(self) -> int:
        """K: the most cells that survive in a row. A crop keeps all of its cells, a frame no more, so a row with all
        the crops it may have keeps the most.
        """
        videos = self.frames - self.crops
        kept = row_capacity(videos, self.fraction, self.cells, self.items) if videos else 0
        return self.crops * self.cells + kept

    @property
    def unpruned(self) -> int:
        """U: S and the most cells that a row can drop (one video drops no fewer than several sharing its frames, or
        some of them).
        """
        return self.length + n_drop(self.frames, self.fraction, self.cells)

    @property
    def patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def features(self) -> dict[str, Feature]:
        """The arrays of a batch."""
        return {**BATCH, "pooling": POOLING} if self.windows else BATCH

    def axes(self, rows: int) -> dict[str, int]:
        height, width = self.size
        own = {"B": rows, "F": self.frames, "U": self.unpruned, "P": self.windows, "h": height, "w": width}
        return own | {"3": 3, "4": POOL[0] * POOL[1]}


def round_up(size: int, step: int) -> int:
    """The next multiple of `step`: rows of few different lengths need few different programs."""
    return -(-size // step) * step


def batch_spec(shape: RowShape, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape [B, ...], dtype) of every array of a batch."""
    sizes, features = shape.axes(rows), shape.features
    return {name: (tuple(sizes[a] for a in ["B", *f.axes.split()]), np.dtype(f.dtype)) for name, f in features.items()}


def empty_rows(shape: RowShape, rows: int) -> dict[str, np.ndarray]:
    """A batch of nothing but padding."""
    features = shape.features
    return {name: np.full(dims, features[name].padding, kind) for name, (dims, kind) in batch_spec(shape, rows).items()}


def full_rows(shape: RowShape, rows: int, videos: int = 1) -> dict[str, np.ndarray]:
    """A batch of rows that `videos` of equal length fill, the cells of each before its text; black, wordless."""
    batch = empty_rows(shape, rows)
    frames = shape.frames // videos
    cells, size = frames * shape.cells, shape.length // videos + n_drop(frames, shape.fraction, shape.cells)
    batch["frame_item"][:] = np.repeat(np.arange(videos), frames)
    batch["frame_prunable"][:] = True
    for video in range(videos):
        tokens = slice(video * size, (video + 1) * size)
        batch["example"][:, tokens], batch["segment"][:, tokens] = video, video * EXAMPLE_STRIDE
        batch["position"][:, tokens] = np.arange(size)
        vision = slice(video * size, video * size + cells)
        batch["cells"][:, vision] = np.arange(video * cells, (video + 1) * cells)
        batch["vision"][:, vision] = True
    return batch


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
    names = set(shape.features)
    if set(batch) != names:
        raise ValueError(f"the batch must hold exactly {sorted(names)}; differing: {sorted(set(batch) ^ names)}")
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
    problem = _frame_problem(used, row["frame_prunable"][: len(used)], shape)
    if problem:
        return problem
    if real[n_tokens:].any() or (np.diff(row["example"][:n_tokens]) < 0).any():
        return "examples must come in order, padding last"
    expected = np.arange(len(used) * shape.cells)[np.repeat(row["frame_prunable"][: len(used)], shape.cells)]
    cells = row["cells"][row["cells"] >= 0]
    window = cells >= shape.frames * shape.cells
    if not np.array_equal(np.sort(cells[~window]), expected):
        return "every cell of every video frame must have exactly one token"
    if window.any() or shape.windows:
        problem = _window_problem(cells[window] - shape.frames * shape.cells, row, shape)
        if problem:
            return problem
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


def _frame_problem(items: np.ndarray, prunable: np.ndarray, shape: RowShape) -> str | None:
    videos = np.unique(items[prunable])
    if len(videos) > shape.items:
        return f"holds {len(videos)} videos, more than items={shape.items}"
    if np.isin(items[~prunable], videos).any():
        return "an item must be either frames of a video or crops of an image"
    if (~prunable).sum() > shape.crops:
        return f"holds {(~prunable).sum()} crops of images, more than crops={shape.crops}"
    return None


def _window_problem(windows: np.ndarray, row: dict[str, np.ndarray], shape: RowShape) -> str | None:
    if not np.array_equal(windows, np.arange(len(windows))) or len(windows) > shape.windows:
        return f"the windows of images must have one token each, in order, and be no more than windows={shape.windows}"
    pooling = row["pooling"]
    if (pooling[: len(windows)] < 0).all(axis=1).any() or (pooling[len(windows) :] >= 0).any():
        return "pooling must list the patches of the windows that have a token, and of no others"
    frame = pooling[pooling >= 0] // shape.patches
    if (frame >= shape.frames).any() or (row["frame_item"][frame] < 0).any() or row["frame_prunable"][frame].any():
        return "pooling must point to patches of image crops"
    return None
