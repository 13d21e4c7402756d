"""What Molmo2-4B is to reach on one accelerator, said whether it did or not."""

from collections.abc import Sequence
from typing import Any

from sttts_jax.bench.compare import ModelRow
from sttts_jax.bench.speedup import SpeedupRow

SPEEDUPS = {0.3: 1.34, 0.4: 1.55, 0.5: 1.80}  # training, 64 frames x 2, 200 tokens of text a sample
SHARE = 0.95  # of the bound, with the paper's 2,250 tokens
MFU = 0.5  # of the unpruned model in training: without it a ratio says little
PREFILL = 1.05  # 128 frames at k = 0.5 over 64 frames unpruned, seconds


def targets(rows: Sequence[SpeedupRow], baselines: Sequence[SpeedupRow]) -> list[dict[str, Any]]:
    """One entry for each number that the rows allow: what, value, wanted, reached."""
    found = []
    models = [row for row in rows if isinstance(row, ModelRow)]
    for row in models:
        at = f"k = {row.k:g}, {row.distribution}"
        if row.what == "train" and row.text <= 200 and row.k in SPEEDUPS:
            found.append(_least(f"training speed-up, 200 text tokens, {at}", row.speedup, SPEEDUPS[row.k]))
        elif row.what == "train":
            found.append(_least(f"share of the bound, {row.text} text tokens, {at}", row.share, SHARE))
        elif row.what == "prefill" and row.k == 0.5 and row.frames == 2 * row.baseline_frames:
            value = 1 / row.speedup
            what = f"prefill, {row.frames} frames at {at} over {row.baseline_frames} unpruned"
            found.append({"what": what, "value": value, "wanted": f"at most {PREFILL}", "reached": value <= PREFILL})
    for base in baselines:
        if isinstance(base, ModelRow) and base.what == "train":
            found.append(_least(f"MFU of unpruned training, {base.text} text tokens", base.mfu, MFU))
    return found


def _least(what: str, value: float, wanted: float) -> dict[str, Any]:
    return {"what": what, "value": value, "wanted": f"at least {wanted}", "reached": value >= wanted}
