"""What a step reports of rows that hold images beside videos."""

import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.models.vlm import VlmLoss
from sttts_jax.ops.loss import LossSums
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.state import build_model
from sttts_jax.train.step import _metrics
from tests.models.batches import Sizes, Talk, make_batch

SIZES = Sizes(frames=4, cells=9, unpruned=72, vocab=512)


def test_crops_are_neither_pruned_cells_nor_tokens() -> None:
    """An image of two crops seen through 5 windows, then a video of two frames that keeps 9 of its 18 cells."""
    run = RunConfig.build(defaults())
    model = build_model(run.model, run.pruning, run.data.row_shape)
    batch = make_batch([[Talk(2, 1, (2,), image=True, windows=5), Talk(2, 1, (3,))]], SIZES)
    kept = np.ones((1, 4, 9), bool)
    kept[0, 3] = False
    zero = jnp.zeros(())
    out = VlmLoss(LossSums(*[zero] * 5), zero, zero, jnp.asarray(kept), None)
    metrics = _metrics(model, {name: jnp.asarray(x) for name, x in batch.items()}, out, {})
    assert float(metrics["kept/share"]) == 0.5
    text, marks = (1 + 2) + (1 + 3), 1 + 2  # a marker before the windows of the image and before each frame
    assert int(metrics["count/tokens"]) == text + marks + 5 + 9
    assert int(metrics["count/frames"]) == 4
    assert float(metrics["fill/cells"]) == pytest.approx(27 / model.capacity)
