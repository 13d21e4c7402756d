"""Random prompts in Molmo2's layout: packed into rows for our model, and each one alone for transformers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sttts_jax.convert.molmo2_config import HUB_TOKEN_IDS, TOKEN_IDS
from sttts_jax.models.config import VlmConfig
from sttts_jax.pruning.cells import CellGrid

STRIDE, PREFIX = 100_000, 10_000  # segment ids: example, and the shared prefix of a message tree
WINDOW = (2, 2)  # of images; a grid of odd sides is ragged
EOS = 1
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Token:
    """`cell` f C + c for a cell of a video; `window` for one of an image: its patches f N + n, -1 where there is none.
    Frames are counted within the example."""

    id: int
    vision: bool = False
    cell: int = -1
    window: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Branch:
    """Text after the prefix; targets and weights as long."""

    tokens: Array
    targets: Array
    weights: Array


@dataclasses.dataclass(frozen=True)
class Example:
    """What was seen, `frames` uint8 [f, H, W, 3] of the `items` (number of frames, video or not), and what was said."""

    cfg: VlmConfig
    prefix: tuple[Token, ...]
    frames: Array
    items: tuple[tuple[int, bool], ...]
    branches: tuple[Branch, ...]

    @property
    def windows(self) -> int:
        """Pooled windows of its images."""
        return sum(bool(token.window) for token in self.prefix)


class Writer:
    """Puts an example together, piece by piece."""

    def __init__(self, cfg: VlmConfig, seed: int):
        self.cfg, self.rng = cfg, np.random.default_rng(seed)
        self.tokens: list[Token] = []
        self.items: list[tuple[int, bool]] = []
        self.ids = {name: cfg.llm.vocab + place for name, place in (TOKEN_IDS | HUB_TOKEN_IDS).items()}

    def text(self, length: int) -> "Writer":
        """Random words."""
        self.tokens += [Token(int(word)) for word in self._words(length)]
        return self

    def video(self, frames: int) -> "Writer":
        """Frames with a time before each; every cell is a token."""
        cells, first = self.cfg.vit.cells, self._frames()
        for frame in range(first, first + frames):
            self.text(2)._mark("frame_start_token_id")
            self.tokens += [self._patch(cell=frame * cells + cell) for cell in range(cells)]
            self._mark("frame_end_token_id")
        self.items.append((frames, True))
        return self

    def image(self, crops: int = 2) -> "Writer":
        """The whole image as one crop, then `crops` side by side, whose windows reach over their borders."""
        (rows, cols), patches, first = self.cfg.vit.grid, self.cfg.vit.patches, self._frames()
        numbers = first * patches + np.arange((1 + crops) * patches).reshape(1 + crops, rows, cols)
        self._mark("low_res_image_start_token_id")
        self.tokens += [self._patch(window=window) for window in _windows(numbers[0])]
        self._mark("image_end_token_id")._mark("image_start_token_id")
        wide = numbers[1:].swapaxes(0, 1).reshape(rows, crops * cols)
        across = CellGrid(wide.shape, WINDOW).shape[1]
        for i, window in enumerate(_windows(wide)):
            self.tokens.append(self._patch(window=window))
            if i % across == across - 1:
                self._mark("image_col_id")
        self.items.append((1 + crops, False))
        return self._mark("image_end_token_id")

    def example(self, *lengths: int) -> Example:
        """Ends it with branches of so many tokens; the first two of each carry no loss."""
        (height, width), branches = self.cfg.vit.image_size, []
        for length in lengths:
            words = self._words(length)
            weights = np.where(np.arange(length) < 2, 0, self.rng.uniform(0.2, 1.0, length))
            branches.append(Branch(words, np.append(words[1:], EOS), weights.astype(np.float32)))
        frames = self.rng.integers(0, 256, (self._frames(), height, width, 3)).astype(np.uint8)
        return Example(self.cfg, tuple(self.tokens), frames, tuple(self.items), tuple(branches))

    def _words(self, length: int) -> Array:
        return self.rng.integers(2, self.cfg.llm.vocab, length)

    def _frames(self) -> int:
        return sum(frames for frames, _ in self.items)

    def _mark(self, name: str) -> "Writer":
        self.tokens.append(Token(self.ids[name], vision=True))
        return self

    def _patch(self, cell: int = -1, window: tuple[int, ...] = ()) -> Token:
        return Token(self.ids["image_patch_id"], True, cell, window)


def _windows(numbers: Array) -> list[tuple[int, ...]]:
    """Patch numbers [rows, columns] -> those of every window, -1 for empty slots."""
    slots = CellGrid(numbers.shape, WINDOW).slots
    return [tuple(int(x) for x in row) for row in np.where(slots < 0, -1, numbers.reshape(-1)[slots])]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One example with one of its branches, alone; `place` int [S]: where its tokens are in the row.

    pixels float32 [f, N, 3 patch^2] normalised; pooling int [tokens of patches, slots], -1 for none; videos: the frames
    of each if there is nothing but videos.
    """

    cfg: VlmConfig
    tokens: Array
    vision: Array
    targets: Array
    weights: Array
    place: Array
    pixels: Array
    pooling: Array
    videos: tuple[int, ...] | None


def prompts_of(row: Sequence[Example]) -> list[Prompt]:
    """Every branch of every example of a row."""
    prompts, start = [], 0
    for example in row:
        prefix, own = len(example.prefix), start
        start += prefix
        for branch in example.branches:
            place = np.concatenate([own + np.arange(prefix), start + np.arange(len(branch.tokens))])
            prompts.append(_prompt(example, branch, place))
            start += len(branch.tokens)
    return prompts


def _prompt(example: Example, branch: Branch, place: Array) -> Prompt:
    cfg, prefix, silent = example.cfg, example.prefix, np.zeros(len(example.prefix))
    text = np.zeros(len(branch.tokens), bool)
    videos = tuple(frames for frames, video in example.items if video)
    return Prompt(
        cfg,
        tokens=np.concatenate([[token.id for token in prefix], branch.tokens]).astype(np.int64),
        vision=np.concatenate([[token.vision for token in prefix], text]).astype(bool),
        targets=np.concatenate([silent, branch.targets]).astype(np.int64),
        weights=np.concatenate([silent, branch.weights]).astype(np.float32),
        place=place,
        pixels=_pixels(example.frames, cfg),
        pooling=_pooling(example),
        videos=videos if len(videos) == len(example.items) else None,
    )


def _pixels(frames: Array, cfg: VlmConfig) -> Array:
    (rows, cols), patch = cfg.vit.grid, cfg.vit.patch
    x = frames.reshape(-1, rows, patch, cols, patch, 3).swapaxes(2, 3)
    return (x.reshape(len(frames), rows * cols, 3 * patch**2) / 127.5 - 1).astype(np.float32)


def _pooling(example: Example) -> Array:
    """Patches of every visual token; tables of few columns are filled up with -1, as in packed training."""
    vit = example.cfg.vit
    slots = vit.cell_grid.slots
    table = []
    for token in example.prefix:
        if token.cell >= 0:
            frame, cell = divmod(token.cell, vit.cells)
            table.append(np.where(slots[cell] < 0, -1, slots[cell] + frame * vit.patches))
        elif token.window:
            table.append(np.asarray(token.window))
    widest = max(map(len, table), default=1)
    padded = [np.pad(row, (0, widest - len(row)), constant_values=-1) for row in table]
    return np.asarray(padded, np.int64).reshape(len(table), widest)


def make_batch(rows: Sequence[Sequence[Example]], cfg: VlmConfig, length: int = 0) -> dict[str, Array]:
    """Our rows, padded to the longest and to `length` tokens."""
    frames = max(sum(len(example.frames) for example in row) for row in rows)
    windows = max(sum(example.windows for example in row) for row in rows)
    made = [_row(row, cfg, frames, windows) for row in rows]
    length = max(length, *(len(row["tokens"]) for row in made))
    fill = {"cells": -1, "segment": -1, "example": -1}
    for row in made:
        space = length - len(row["tokens"])
        for name in ("tokens", "targets", "weights", "cells", "vision", "segment", "position", "example"):
            row[name] = np.pad(row[name], (0, space), constant_values=fill.get(name, 0))
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _row(examples: Sequence[Example], cfg: VlmConfig, frames: int, windows: int) -> dict[str, Array]:
    (height, width), cells, patches = cfg.vit.image_size, cfg.vit.cells, cfg.vit.patches
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    item, prunable = np.full(frames, -1, np.int32), np.zeros(frames, bool)
    pooling, parts, frame, items = [], [], 0, 0
    for number, example in enumerate(examples):
        own = []
        for token in example.prefix:
            if token.window:
                own.append(frames * cells + len(pooling))
                pooling.append([x if x < 0 else x + frame * patches for x in token.window])
            else:
                own.append(token.cell if token.cell < 0 else token.cell + frame * cells)
        parts.append(_tokens(example, number, np.asarray(own, np.int32)))
        pictures[frame : frame + len(example.frames)] = example.frames
        for count, video in example.items:
            item[frame : frame + count], prunable[frame : frame + count] = items, video
            frame, items = frame + count, items + 1
    row = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    row |= {"frames": pictures, "frame_item": item, "frame_prunable": prunable}
    if windows:
        slots = WINDOW[0] * WINDOW[1]
        pooling += [[-1] * slots] * (windows - len(pooling))
        row["pooling"] = np.asarray(pooling, np.int32).reshape(windows, slots)
    return row


def _tokens(example: Example, number: int, cells: Array) -> dict[str, Array]:
    prefix, branches = example.prefix, example.branches
    size, lengths = len(prefix), [len(branch.tokens) for branch in branches]
    text, silent = sum(lengths), np.zeros(size)
    tree = len(branches) > 1
    segment = np.concatenate([np.full(size, PREFIX * tree), np.repeat(np.arange(len(branches)), lengths)])
    return {
        "tokens": np.concatenate([[token.id for token in prefix], *(b.tokens for b in branches)]).astype(np.int32),
        "targets": np.concatenate([silent, *(b.targets for b in branches)]).astype(np.int32),
        "weights": np.concatenate([silent, *(b.weights for b in branches)]).astype(np.float32),
        "cells": np.concatenate([cells, np.full(text, -1)]).astype(np.int32),
        "vision": np.concatenate([[token.vision for token in prefix], np.zeros(text)]).astype(bool),
        "segment": (segment + STRIDE * number).astype(np.int32),
        "position": np.concatenate([np.arange(size), *(size + np.arange(n) for n in lengths)]).astype(np.int32),
        "example": np.full(size + text, number, np.int32),
    }
