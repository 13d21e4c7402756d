"""FLOP counts: against XLA's own count of the real modules, against known figures, and pairs against the dense mask."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.models import flops
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VlmConfig
from sttts_jax.models.connector import Connector
from sttts_jax.models.llm import Llm
from sttts_jax.models.presets import preset
from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from tests.models.looped import looped

MOLMO = preset("molmo2-4b")


def _row(frames: int, kept: list[float] | None, text: int = 200) -> flops.RowFlops:
    """A video of `frames` frames and `text` text tokens, causal, without the head."""
    tokens = text + (frames * 81 if kept is None else sum(kept))
    return flops.row_flops(
        MOLMO, frames=frames, kept_cells=kept, tokens=tokens, pairs=flops.example_pairs(int(tokens)), loss_tokens=0
    )


def test_known_figures_of_the_4b_model() -> None:
    vit = MOLMO.vit
    assert round(vit.layers * flops.vit_block_flops(vit, 729, 729**2) / 1e9) == 616
    assert round(_row(1, None).connector / 1e9) == 16
    assert round(flops.llm_flops(MOLMO.llm, 1, 0) / 1e9, 2) == 7.27
    row = _row(64, None)
    assert round(row.vit_head / 1e12, 1) == pytest.approx(39.5, abs=0.1)
    assert round(row.llm / 1e12, 1) == 47.7


@pytest.mark.parametrize(("drop", "vit", "llm", "total"), [(0.3, 1.34, 1.48, 1.42), (0.5, 1.72, 2.11, 1.91)])
def test_known_speed_limits_of_pruning(drop: float, vit: float, llm: float, total: float) -> None:
    survivors = 64 * 81 - int(64 * 81 * drop)
    kept = [81.0] + [(survivors - 81) / 63] * 63
    full, pruned = _row(64, None), _row(64, kept)
    tower = lambda row: row.vit_head + row.vit_tail  # noqa: E731
    assert tower(full) / tower(pruned) == pytest.approx(vit, abs=0.015)
    assert full.llm / pruned.llm == pytest.approx(llm, abs=0.015)
    assert full.total / (pruned.total - pruned.scorer) == pytest.approx(total, abs=0.015)
    assert pruned.scorer / pruned.total < 0.02


def _counted(f, *args) -> float:
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.optimized
def test_the_language_model_costs_what_xla_counts() -> None:
    cfg = LlmConfig(width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp=384, vocab=512)
    model, zero = Llm(cfg), jnp.zeros((1, 64), jnp.int32)
    x, rule = jnp.zeros((1, 64, 128)), RowRule.of(zero > 0, zero)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x, zero, rule))
    # The plain kernel computes all 64 x 64 pairs; norms, rope and softmax are what the arithmetic leaves out.
    want = flops.llm_flops(cfg, 64, 64 * 64)
    run = lambda p, x: model.apply(p, x, zero, rule, method=looped)  # noqa: E731  XLA counts the body of a scan once
    assert want <= _counted(run, params, x) <= 1.12 * want
    hidden = jnp.zeros((64, 128))
    assert _counted(lambda p, h: model.apply(p, h, method="logits"), params, hidden) == flops.head_flops(cfg, 64)


@pytest.mark.optimized
def test_the_connector_costs_what_xla_counts() -> None:
    cfg, windows = ConnectorConfig(width=64, heads=4, head_dim=16, mlp=128), jnp.zeros((40, 9, 128))
    model = Connector(cfg, 96)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), windows))
    want = flops.connector_flops(cfg, 128, 96, 40, 9)
    assert want <= _counted(model.apply, params, windows) <= 1.05 * want


def test_without_pruning_there_is_no_tail_and_no_scorer() -> None:
    tiny = preset("tiny")
    row = flops.row_flops(tiny, frames=4, kept_cells=None, tokens=80, pairs=3000, loss_tokens=5)
    assert row.scorer == row.vit_tail == 0
    whole = flops.row_flops(tiny, frames=4, kept_cells=[tiny.vit.cells] * 4, tokens=80, pairs=3000, loss_tokens=5)
    assert whole.vit_head + whole.vit_tail == row.vit_head
    assert whole.total - whole.scorer == row.total


def test_training_is_three_passes_and_four_with_full_remat() -> None:
    assert [flops.train_factor(name) for name in ("none", "dots", "attention", "full")] == [3, 3, 4, 4]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=30, max_size=30))
def test_pairs_of_one_example_need_only_its_counts(vision: list[bool]) -> None:
    zero = jnp.zeros((1, len(vision)), jnp.int32)
    rule = RowRule.of(jnp.asarray(vision)[None], zero, zero)
    assert flops.example_pairs(len(vision), sum(vision)) == int(mask_rows(rule, rule).sum())
    assert flops.example_pairs(7, 4) == 34


def test_analytic_parameters_follow_the_block_kind() -> None:
    tiny = preset("tiny")
    olmo = VlmConfig(tiny.vit, tiny.connector, dataclasses.replace(tiny.llm, qk_norm="full", tied=False))
    assert flops.llm_parameters(olmo.llm) == flops.llm_parameters(tiny.llm) + 3 * (96 + 96 - 2 * 24) + 512 * 96
