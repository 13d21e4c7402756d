"""Examples into rows by their PRUNED length.

A row is filled from the examples that wait for it: best fit among `packing_rows` of them. It holds

    frames  <= F      kept cells <= K      tokens after pruning <= S      tokens before <= U      examples <= V

and, where rows have room for images, crops and windows. An image's crops count as frames.

Grain's packing fills many rows at once and gives them away together; here every row of the batch is filled by itself
(`data.row_streams`), one after the other, so that as few examples as possible wait in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sttts_jax.data.record import RecordError
from sttts_jax.data.schema import EXAMPLE_STRIDE, Example, RowShape, empty_rows, kept_cells
from sttts_jax.pruning.budget import n_kept

NO_IMAGES = "has images, for which rows have no room; set crops_per_row above 0"
_SETTINGS = {
    **{"frames": "frames_per_row", "kept": "frames_per_row", "alive": "row_length", "unpruned": "row_length"},
    **{"crops": "crops_per_row", "windows": "windows_per_row"},
}


@dataclass(frozen=True)
class Item:
    """A training example with its pictures, uint8 [crops + frames, h, w, 3], as the example orders them, and the name
    of its record.
    """

    example: Example
    frames: np.ndarray
    name: str = ""


class Packed(NamedTuple):
    """arrays: of one row, or of a batch. names: of the records in it, in order."""

    arrays: dict[str, np.ndarray]
    names: tuple[str, ...]


def lengths(example: Example, shape: RowShape) -> dict[str, int]:
    """What an example takes of a row. Raises RecordError for one that does not fit an empty row."""
    crops = sum(example.crops)
    taken = {
        "frames": example.pictures,
        "kept": n_kept(example.frames, shape.fraction, shape.cells) + crops * shape.cells,
        "alive": example.alive(shape.fraction, shape.cells),
        "unpruned": len(example.tokens),
    }
    if crops and not shape.windows:
        raise RecordError(NO_IMAGES)
    if shape.windows:
        taken |= {"crops": crops, "windows": len(example.pooling)}
    room = capacities(shape)
    for name, value in taken.items():
        if value > room[name]:
            setting, most = _SETTINGS[name], "max_crops" if crops else "max_frames"
            raise RecordError(f"takes {value} {name} and a row has {room[name]}; raise {setting} or lower {most}")
    return taken


def capacities(shape: RowShape) -> dict[str, int]:
    """The most of everything that `lengths` counts."""
    room = {"frames": shape.frames, "kept": shape.kept, "alive": shape.length, "unpruned": shape.unpruned}
    return room | {"crops": shape.crops, "windows": shape.windows} if shape.windows else room


class Waiting(NamedTuple):
    """An example that may be chosen for a row: the number of its draw, itself, and what it takes."""

    draw: int
    item: Item
    taken: dict[str, int]


def take_row(waiting: list[Waiting], draw: Callable[[], Waiting | None], shape: RowShape, choice: int) -> list[Waiting]:
    """The examples of the next row, taken out of `waiting`, which `draw` fills up to `choice` before each is chosen.

    The row begins with the one that waits longest, so that none waits for ever; then of those that fit comes the one
    with the most tokens, until none fits. draw: the next example, None at the end; then the row may be empty.
    """
    room, row = capacities(shape), list[Waiting]()
    while len(row) < shape.items:
        while len(waiting) < choice and (found := draw()) is not None:
            waiting.append(found)
        fitting = [one for one in waiting if all(one.taken[name] <= room[name] for name in room)]
        if not fitting:
            break
        chosen = max(fitting, key=lambda one: one.taken["alive"]) if row else fitting[0]
        waiting.remove(chosen)
        row.append(chosen)
        room = {name: left - chosen.taken[name] for name, left in room.items()}
    return row


def packed_row(items: Sequence[Item], shape: RowShape) -> Packed:
    """The batch contract without the leading B."""
    return Packed(fill_row(items, shape), tuple(item.name for item in items))


def pack(items: Iterable[Item], shape: RowShape, choice: int) -> Iterator[Packed]:
    """Rows of all items."""
    numbered, waiting = enumerate(items), list[Waiting]()

    def draw() -> Waiting | None:
        number, item = next(numbered, (0, None))
        return None if item is None else Waiting(number, item, lengths(item.example, shape))

    while row := take_row(waiting, draw, shape, choice):
        yield packed_row([one.item for one in row], shape)


def batch_packed(rows: Sequence[Packed]) -> Packed:
    """Rows to a batch."""
    return Packed(stack([row.arrays for row in rows]), tuple(name for row in rows for name in row.names))


def fill_row(items: Sequence[Item], shape: RowShape) -> dict[str, np.ndarray]:
    """The arrays of one row. Examples in order, pictures of an example contiguous, each image and video an item of its
    own, padding last.
    """
    row = {name: value[0] for name, value in empty_rows(shape, 1).items()}
    frame, token, window, number = 0, 0, 0, 0
    for place, item in enumerate(items):
        example = item.example
        frames, tokens = slice(frame, frame + example.pictures), slice(token, token + len(example.tokens))
        if example.pictures:
            sizes = [*example.crops, *([example.frames] if example.frames else [])]
            row["frames"][frames] = item.frames
            row["frame_item"][frames] = np.repeat(number + np.arange(len(sizes)), sizes)
            row["frame_prunable"][frame + sum(example.crops) : frames.stop] = True
            number += len(sizes)
        for name in ("tokens", "targets", "weights", "vision", "position"):
            row[name][tokens] = getattr(example, name)
        row["cells"][tokens] = _cells_in_row(example, shape, frame, window)
        row["segment"][tokens] = example.segment + EXAMPLE_STRIDE * place
        row["example"][tokens] = place
        if len(example.pooling):
            windows, patches = slice(window, window + len(example.pooling)), frame * shape.patches
            row["pooling"][windows] = np.where(example.pooling >= 0, example.pooling + patches, -1)
            window = windows.stop
        frame, token = frames.stop, tokens.stop
    return row


def _cells_in_row(example: Example, shape: RowShape, frame: int, window: int) -> np.ndarray:
    """int32 [n]: `cells` of an example whose first picture and window are the row's `frame` and `window`."""
    cells, own = example.cells, example.pictures * shape.cells
    windows = shape.frames * shape.cells + window + cells - own
    return np.where(cells < 0, -1, np.where(cells < own, cells + frame * shape.cells, windows))


def stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows to a batch, [B, ...]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def fill_rate(batch: dict[str, np.ndarray], shape: RowShape) -> dict[str, float]:
    """How full a batch is, shares from 0 to 1: frames of F, kept cells of K, tokens after pruning of S."""
    rows = len(batch["tokens"])
    frames = int((batch["frame_item"] >= 0).sum())
    kept = sum(kept_cells(batch["frame_item"][r], batch["frame_prunable"][r], shape) for r in range(rows))
    alive = int((batch["example"] >= 0).sum()) - (frames * shape.cells - kept)
    return {
        "frames": frames / (rows * shape.frames),
        "cells": kept / (rows * shape.kept),
        "tokens": alive / (rows * shape.length),
    }
