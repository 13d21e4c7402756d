"""Spatio-temporal token pruning for any Flax vision transformer (STTS, arXiv 2603.18004).

    rows   = frame_rows(frame_item, frame_prunable)          # which frame belongs to which video
    logits = Scorer(...).apply(params, cells, rows)          # one score a cell, float32 logits
    bias   = soft_bias(logits, rows, ...)                    # how the task loss reaches the scorer
    kept   = select(scores, rows, fraction, capacity)        # exact budget, static shape
    layout = staircase(kept, ...)                            # survivors <-> dense arrays, and back

Names load on first use, so that data workers can import `pruning.budget` without jax.
"""

import importlib
from typing import Any

_HOME = {
    "as_fraction": "budget",
    "n_drop": "budget",
    "n_kept": "budget",
    "row_capacity": "budget",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
