"""What a step reports of rows that hold images beside videos."""

import functools
import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.models.config import cuts
from sttts_jax.models.vlm import VlmLoss
from sttts_jax.ops.loss import LossSums
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.state import abstract_batch, boxed_state, build_model
from sttts_jax.train.step import _metrics, train_step
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


def test_a_step_for_tpus_holds_one_program_for_alike_blocks() -> None:
    """Each call of a kernel is a program for the compiler, and so is each sort, which takes it longer than a block."""
    config = defaults()
    config.model.dtype, config.model.remat = "bfloat16", "attention"
    config.model.overrides = {"vit": {"layers": 5, "feature_layers": (4, 2)}}
    run = RunConfig.build(config)
    model = build_model(run.model, run.pruning, run.data.row_shape, "tpu")
    assert len(cuts(model.cfg.vit)) == 4  # stacks: of whole frames, biased, and of survivors two
    state, optimizer = boxed_state(run.optimizer, run.total_steps, model, run.data.row_shape)
    step = jax.jit(functools.partial(train_step, run.loss, 0, model, optimizer))
    traced = step.trace(nn.unbox(state), abstract_batch(run.data.row_shape, 2))
    lowered = traced.lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    kernels = Counter(re.findall(r'kernel_name = "(\w+)"', text))
    # Once for whole frames, the biased block, survivors, and the language model; forward kernels stand in the backward
    # pass once more, where nothing reads them: policy "attention" keeps their results.
    assert kernels == {
        "stream_attention": 2 * 3,
        "stream_attention_grad": 3,
        "row_attention": 2,
        "row_attention_grad_q": 1,
        "row_attention_grad_kv": 1,
    }
    assert text.count('"stablehlo.sort"') <= 1
