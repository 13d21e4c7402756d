"""Golden parity with Molmo2: fp32 logits of a tiny random checkpoint, recorded from another implementation."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.models.connector import Connector
from sttts_jax.models.llm import Llm
from sttts_jax.models.vit import Vit
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from tests.golden import molmo2_weights as hub

CELLS = {"A": (3, 3), "B": (4, 4)}  # on a 9 x 9 grid; 4 x 4 windows are ragged
PROJECTED = {  # rows 0 and 17, first four channels
    "A": ([0.005280, 0.007091, -0.019120, 0.001900], [-0.035052, 0.011005, -0.062598, 0.004622]),
    "B": ([0.005280, 0.007091, -0.019120, 0.001900], [0.027522, -0.034306, 0.065966, 0.055086]),
}
PROJECTED_SUM = {"A": 0.51139, "B": -0.09036}
CAUSAL_LAST = {  # logits of the last position when vision tokens are causal: what a wrong mask gives
    "A": [0.215872, 0.331587, -0.701123, -0.510778, -0.353017],
    "B": [0.190645, 0.387361, -0.682722, -0.506832, -0.390723],
}


def _noise(seed: int, size: int) -> np.ndarray:
    """The generator of the recorded inputs: a linear congruence mixed by shifts, values in [-1, 1)."""
    x = (np.arange(size, dtype=np.uint64) + 1000003 * seed + 17) % 2**31
    for _ in range(3):
        x = (x * 1103515245 + 12345) % 2**31
        x ^= x >> 13
    return x / 2**30 - 1


@cache
def _files() -> tuple:
    return hub.load()


def _windows(case: str) -> tuple[jax.Array, jax.Array]:
    """Features [18, W, 32] of the recorded block outputs, and which patches are there."""
    outputs = _files()[2]
    features = np.concatenate([outputs["vit_block9_out"], outputs["vit_block3_out"]], axis=-1).reshape(162, -1)
    table = outputs[f"token_pooling_{case}"]
    return jnp.asarray(features[np.maximum(table, 0)]), jnp.asarray(table >= 0)


def _project(windows: jax.Array, valid: jax.Array) -> jax.Array:
    weights, config, _ = _files()
    cfg = hub.connector_config(config)
    model = Connector(cfg, config["text_config"]["hidden_size"])
    return model.apply({"params": hub.connector_tree(weights, cfg)}, windows, valid)


def _logits(case: str, visual: jax.Array, bidirectional: bool = True) -> jax.Array:
    weights, config, outputs = _files()
    cfg = hub.llm_config(config)
    model, params = Llm(cfg), {"params": hub.llm_tree(weights, cfg)}
    tokens = jnp.asarray(outputs[f"input_ids_{case}"])
    vision = jnp.asarray(outputs[f"vision_mask_{case}"] > 0) & bidirectional
    x = model.apply(params, tokens, method="embed")
    x = x.at[np.asarray(tokens) == config["image_patch_id"]].add(visual)
    hidden, _ = model.apply(params, x, jnp.arange(tokens.shape[1])[None], RowRule.of(vision, jnp.zeros_like(tokens)))
    return model.apply(params, hidden, method="logits")


@pytest.mark.parametrize("case", CELLS)
def test_connector_from_recorded_features(case: str) -> None:
    projected = _project(*_windows(case))
    np.testing.assert_allclose(projected[np.array([0, 17]), :4], PROJECTED[case], atol=2e-6)
    np.testing.assert_allclose(projected.sum(), PROJECTED_SUM[case], atol=1e-4)


@pytest.mark.parametrize("case", CELLS)
def test_logits_from_recorded_features(case: str) -> None:
    logits = _logits(case, _project(*_windows(case)))
    np.testing.assert_allclose(logits, _files()[2][f"logits_{case}"], atol=1e-4)


@pytest.mark.parametrize("case", CELLS)
def test_a_causal_mask_is_caught(case: str) -> None:
    logits = _logits(case, _project(*_windows(case)), bidirectional=False)
    np.testing.assert_allclose(logits[0, -1, :5], CAUSAL_LAST[case], atol=1e-5)
    assert np.abs(logits - _files()[2][f"logits_{case}"]).max() > 0.05


@pytest.mark.parametrize("case", CELLS)
def test_whole_model_from_pixels(case: str) -> None:
    weights, config, outputs = _files()
    cfg = hub.vit_config(config, CELLS[case])
    vit = Vit(cfg, PruneConfig(method="none"))
    pixels = jnp.asarray(_noise(999, 2 * 81 * 588).reshape(1, 2, 81, 588), jnp.float32)
    patches = cfg.cell_grid.to_cells(pixels)
    rows = FrameRows(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    out = vit.apply({"params": hub.vit_tree(weights, cfg)}, patches, rows, 18)
    valid = jnp.asarray(outputs[f"token_pooling_{case}"] >= 0)
    logits = _logits(case, _project(out.features[0], valid))
    np.testing.assert_allclose(logits, outputs[f"logits_{case}"], atol=1e-4)
