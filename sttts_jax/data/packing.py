"""Examples into rows by their PRUNED length.

First fit over `packing_rows` open rows. Grain packs features by the length of their first axis, so each constraint
becomes a feature of that many zero-byte elements, and the example itself rides along as a meta feature. A row holds

    frames  <= F      kept cells <= K      tokens after pruning <= S      tokens before <= U      examples <= V

and, where rows have room for images, crops and windows. An image's crops count as frames.

Grain's own iterator state (where its parent stood, how many rows it gave since) makes resuming exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset

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


def pack(items: grain.IterDataset, shape: RowShape, packing_rows: int, seed: int) -> grain.IterDataset:
    """IterDataset of Item -> IterDataset of Packed rows (the batch contract without the leading B)."""

    def measured(item: Item) -> dict[str, Any]:
        return {name: np.zeros((n, 0), np.uint8) for name, n in lengths(item.example, shape).items()} | {"item": item}

    packed = FirstFitPackIterDataset(
        items.map(measured),
        length_struct=capacities(shape),
        num_packing_bins=packing_rows,
        seed=seed,
        shuffle_bins=True,  # first fit fills the first rows best
        meta_features=("item",),
        max_sequences_per_bin=shape.items,
    )
    return packed.map(lambda row: Packed(fill_row(row["item"], shape), tuple(item.name for item in row["item"])))


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
