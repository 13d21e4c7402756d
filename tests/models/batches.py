"""Rows of the data contract, laid out by hand: what the host would pack, for small frames."""

import dataclasses
from collections.abc import Sequence

import numpy as np

STRIDE, PREFIX = 100_000, 10_000  # segment ids: example, and the shared prefix of a message tree


@dataclasses.dataclass(frozen=True)
class Talk:
    """An example: some text, `frames` frames of one video (`image`: crops, seen through `windows` pooled windows), then
    the branches of a message tree with so many tokens each."""

    frames: int = 0
    lead: int = 2
    branches: tuple[int, ...] = (3,)
    image: bool = False
    windows: int = 0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """F, C, U of a row, ids below `vocab` are text, `vocab` is the <im_patch> token and `vocab` + 1 a marker."""

    frames: int
    cells: int
    unpruned: int
    vocab: int
    pixels: int = 4


def tokens_of(talk: Talk, sizes: Sizes, first_frame: int, first_window: int) -> dict[str, np.ndarray]:
    """Every per-token array of one example."""
    rng = np.random.default_rng(talk.seed)
    tokens, cells, vision = list(rng.integers(1, sizes.vocab, talk.lead)), [-1] * talk.lead, [False] * talk.lead
    spans = [first_frame + i for i in range(talk.frames)]
    if talk.image:
        start = sizes.frames * sizes.cells + first_window
        groups = [list(range(start, start + talk.windows))]
    else:
        groups = [[f * sizes.cells + c for c in range(sizes.cells)] for f in spans]
    for group in groups if talk.frames else []:
        tokens += [sizes.vocab + 1] + [sizes.vocab] * len(group)
        cells += [-1, *group]
        vision += [True] * (1 + len(group))
    prefix = len(tokens)
    position, segment = list(range(prefix)), [PREFIX] * prefix
    targets, weights = [0] * prefix, [0.0] * prefix
    for branch, length in enumerate(talk.branches):
        text = list(rng.integers(1, sizes.vocab, length))
        tokens, cells, vision = tokens + text, cells + [-1] * length, vision + [False] * length
        position += range(prefix, prefix + length)
        segment += [branch] * length
        targets += [*text[1:], 1]
        weights += list(rng.uniform(0.2, 1.0, length))
    return {
        "tokens": np.asarray(tokens, np.int32),
        "targets": np.asarray(targets, np.int32),
        "weights": np.asarray(weights, np.float32),
        "cells": np.asarray(cells, np.int32),
        "vision": np.asarray(vision, bool),
        "segment": np.asarray(segment, np.int32),
        "position": np.asarray(position, np.int32),
    }


PADDING = {"tokens": 0, "targets": 0, "weights": 0, "cells": -1, "vision": False, "segment": -1, "position": 0}


def make_row(talks: Sequence[Talk], sizes: Sizes) -> dict[str, np.ndarray]:
    """One row: the examples one after the other, then padding."""
    parts, frame, window = [], 0, 0
    frames = np.zeros((sizes.frames, sizes.pixels, sizes.pixels, 3), np.uint8)
    item, prunable = np.full(sizes.frames, -1, np.int32), np.zeros(sizes.frames, bool)
    visual = 0
    for example, talk in enumerate(talks):
        part = tokens_of(talk, sizes, frame, window)
        part["segment"] = part["segment"] + STRIDE * example
        part["example"] = np.full(len(part["tokens"]), example, np.int32)
        parts.append(part)
        if talk.frames:
            own = slice(frame, frame + talk.frames)
            frames[own] = np.random.default_rng(100 + talk.seed).integers(0, 256, frames[own].shape)
            item[own], prunable[own] = visual, not talk.image
            visual, frame, window = visual + 1, frame + talk.frames, window + talk.windows
    row = {}
    for name in (*PADDING, "example"):
        values = np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, np.int32)
        space = sizes.unpruned - len(values)
        assert space >= 0 and frame <= sizes.frames, "the row does not fit"
        row[name] = np.pad(values, (0, space), constant_values=PADDING.get(name, -1))
    return {**row, "frames": frames, "frame_item": item, "frame_prunable": prunable}


def make_batch(rows: Sequence[Sequence[Talk]], sizes: Sizes) -> dict[str, np.ndarray]:
    """[B, ...] of every array."""
    made = [make_row(talks, sizes) for talks in rows]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}
