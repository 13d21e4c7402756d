"""What a run costs, from its config alone: parameters, and FLOPs by part, with pruning and without it."""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from sttts_jax.models.flops import RowFlops, example_pairs, parameter_counts, row_flops, train_factor
from sttts_jax.text_table import text_table
from sttts_jax.train.config import RunConfig
from sttts_jax.train.optimizer import FROZEN
from sttts_jax.trees import named_leaves

TERA, PETA = 1e12, 1e15
# Whose weights the products of each part of RowFlops take.
WEIGHTS = {
    "vit_head": r"vit/(?!scorer/).*",
    "scorer": r"vit/scorer/.*",
    "vit_tail": r"vit/(?!scorer/).*",
    "connector": r"connector/.*",
    "llm": r"llm/blocks/.*",
    "llm_head": r"llm/(embedding|head)",
}


def videos_of_row(config: RunConfig) -> int:
    """Videos of `data.max_frames` frames that fill a row."""
    return max(config.data.frames_per_row // config.data.max_frames, 1)


def full_row_flops(config: RunConfig) -> RowFlops:
    """Forward FLOPs of a row that is full: equal videos, survivors spread evenly over frames, text through the head."""
    shape, videos = config.data.row_shape, videos_of_row(config)
    vision = shape.kept + 2 * shape.frames
    return row_flops(
        config.vlm,
        frames=shape.frames,
        kept_cells=None if config.pruning.removed == "0" else [shape.kept / shape.frames] * shape.frames,
        tokens=shape.length,
        pairs=videos * example_pairs(shape.length // videos, vision // videos),
        loss_tokens=max(shape.length - vision, 0),
    )


def frozen_parts(labels: Any) -> frozenset[str]:
    """Parts of RowFlops none of whose weights is trained, factors of LoRA aside; `labels` as in `Optimizer`."""
    trained = [name for name, label in named_leaves(labels).items() if label != FROZEN and "_lora_" not in name]
    return frozenset(
        part for part, pattern in WEIGHTS.items() if not any(re.fullmatch(pattern, name) for name in trained)
    )


def update_flops(config: RunConfig, frozen: Collection[str] = ()) -> float:
    """FLOPs of an update on all devices, its rows as full as `full_row_flops` takes them.

    Of `frozen` parts no gradients of weights are formed, which would cost as much as the forward pass once more.
    """
    parts, factor = dataclasses.asdict(full_row_flops(config)), train_factor(config.model.remat)
    return config.data.rows * sum(flops * (factor - (part in frozen)) for part, flops in parts.items())


def unpruned(config: RunConfig) -> RunConfig:
    """The run with the same frames and the same room for text, and nothing removed."""
    pruning = dataclasses.replace(config.pruning, fractions=("0",))
    return dataclasses.replace(config, pruning=pruning).buckets[0]


def describe(config: RunConfig) -> str:
    """Lines for people: parameters by part; sizes of a row; TFLOPs of a forward pass by part, and PFLOPs of a step.

    A step has every row forward and backward, and what `model.remat` computes again. The last column is how many times
    less that is than without pruning.
    """
    counts = parameter_counts(config.vlm)
    if not config.pruning.has_scorer:
        del counts["scorer"]
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    whole = unpruned(config)
    buckets = [whole, *(part for part in config.buckets if part.pruning.removed != "0")]
    header = ("", "cells", "tokens", "ViT", "scorer", "connector", "LLM", "head", "row", "step", "")
    lines = text_table(header, [_line(part, whole) for part in buckets])
    return (
        f"parameters: {parts}; all {sum(counts.values()):,}\n"
        f"{config.data.rows} rows a step, in each {videos_of_row(config)} x {config.data.max_frames} frames and text;"
        f" TFLOPs of a row forward, PFLOPs of a step:\n{lines}"
    )


def _line(config: RunConfig, whole: RunConfig) -> tuple[str, ...]:
    flops, shape = full_row_flops(config), config.data.row_shape
    parts = (flops.vit_head + flops.vit_tail, flops.scorer, flops.connector, flops.llm, flops.llm_head, flops.total)
    step = update_flops(config)
    ratio = full_row_flops(whole).total / flops.total
    return (
        "unpruned" if config.pruning.removed == "0" else f"k = {config.pruning.removed}",
        f"{shape.kept:,}",
        f"{shape.length:,}",
        *(f"{part / TERA:,.1f}" for part in parts),
        f"{step / PETA:,.1f}",
        f"{ratio:.2f} x",
    )
