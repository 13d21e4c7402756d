"""Spatio-temporal token pruning for any Flax vision transformer (STTS, arXiv 2603.18004).

    rows   = FrameRows(item, prunable)                 # which frame belongs to which video
    logits = Scorer(heads, head_dim, mlp)(x, rows)     # one score a cell, float32 logits
    bias   = soft_bias(logits, rows, grid)             # how the task loss reaches the scorer
    kept   = select_cells(logits, rows, fraction, capacity)  # exact budget, static shape
    layout = stream_layout(kept)                       # survivors <-> dense arrays, and back

Names load on first use, so that data workers can import `pruning.budget` without jax.
"""

import importlib
from typing import Any

_HOME = {
    "as_fraction": "budget",
    "n_drop": "budget",
    "n_kept": "budget",
    "row_capacity": "budget",
    "CellGrid": "cells",
    "FrameRows": "frame_rows",
    "Scorer": "scorer",
    "soft_bias": "bias",
    "Kept": "select",
    "select_cells": "select",
    "FrameLayout": "pack",
    "pack_cells": "pack",
    "unpack_cells": "pack",
    "take_rows": "pack",
    "StreamLayout": "staircase",
    "stairs": "staircase",
    "stream_layout": "staircase",
    "RaggedLayout": "ragged",
    "ragged_layout": "ragged",
    "frame_plan": "ragged",
    "BinLayout": "bins",
    "bin_layout": "bins",
    "plan_bins": "bins",
    "neighbour_cosine": "aux_loss",
    "temporal_loss": "aux_loss",
    "easy_scores": "baselines",
    "random_scores": "baselines",
    "reference_tracking_scores": "baselines",
    "PruneConfig": "config",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
