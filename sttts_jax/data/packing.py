"""Examples into rows by their PRUNED length.

First fit over `packing_rows` open rows. Grain packs features by the length of their first axis, so each constraint
becomes a feature of that many zero-byte elements, and the example itself rides along as a meta feature. A row holds

    frames  <= F      kept cells <= K      tokens after pruning <= S      tokens before <= U      examples <= V

Grain's own iterator state (where its parent stood, how many rows it gave since) makes resuming exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset

from sttts_jax.data.record import RecordError
from sttts_jax.data.schema import BATCH, EXAMPLE_STRIDE, Example, RowShape, empty_rows, kept_cells
from sttts_jax.pruning.budget import n_kept


@dataclass(frozen=True)
class Item:
    """A training example with its frames, uint8 [frames, h, w, 3]."""

    example: Example
    frames: np.ndarray


def lengths(example: Example, shape: RowShape) -> dict[str, int]:
    """What an example takes of a row. Raises RecordError for one that does not fit an empty row."""
    taken = {
        "frames": example.frames,
        "kept": n_kept(example.frames, shape.fraction, shape.cells),
        "alive": example.alive(shape.fraction, shape.cells),
        "unpruned": len(example.tokens),
    }
    for (name, value), setting in zip(
        taken.items(), ("frames_per_row", "frames_per_row", "row_length", "row_length"), strict=True
    ):
        if value > capacities(shape)[name]:
            raise RecordError(
                f"takes {value} {name} and a row has {capacities(shape)[name]}; raise {setting} or lower max_frames"
            )
    return taken


def capacities(shape: RowShape) -> dict[str, int]:
    return {"frames": shape.frames, "kept": shape.kept, "alive": shape.length, "unpruned": shape.unpruned}


def pack(items: grain.IterDataset, shape: RowShape, packing_rows: int, seed: int) -> grain.IterDataset:
    """IterDataset of Item -> IterDataset of rows (dicts of the batch contract, without the leading B)."""

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
    return packed.map(lambda row: fill_row(row["item"], shape))


def fill_row(items: Sequence[Item], shape: RowShape) -> dict[str, np.ndarray]:
    """The arrays of one row. Examples in order, frames of a video contiguous, padding last."""
    row = {name: value[0] for name, value in empty_rows(shape, 1).items()}
    frame, token, video = 0, 0, 0
    for number, item in enumerate(items):
        example = item.example
        frames, tokens = slice(frame, frame + example.frames), slice(token, token + len(example.tokens))
        if example.frames:
            row["frames"][frames] = item.frames
            row["frame_item"][frames] = video
            row["frame_prunable"][frames] = True
            video += 1
        for name in ("tokens", "targets", "weights", "vision", "position"):
            row[name][tokens] = getattr(example, name)
        row["cells"][tokens] = np.where(example.cells >= 0, example.cells + frame * shape.cells, -1)
        row["segment"][tokens] = example.segment + EXAMPLE_STRIDE * number
        row["example"][tokens] = number
        frame, token = frames.stop, tokens.stop
    return row


def stack(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in BATCH}


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
