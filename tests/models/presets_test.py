"""Presets have the sizes of the released models, by arithmetic and by shape evaluation of the real modules."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from sttts_jax.models import flops
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.connector import Connector
from sttts_jax.models.llm import Llm
from sttts_jax.models.presets import PRESETS, preset
from sttts_jax.models.vit import Vit
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows

# Released totals count a head of its own, also for the 4B model, which trains with a tied one.
RELEASED = {"molmo2-4b": 4_850_869_200, "molmo2-8b": 8_661_703_120, "molmo2-o-7b": 7_760_786_896}


def _untied(name: str) -> VlmConfig:
    cfg = preset(name)
    return dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, tied=False))


def _size(init, *args) -> int:
    shapes = jax.eval_shape(init, jax.random.key(0), *args)
    return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))


def _evaluated(cfg: VlmConfig) -> dict[str, int]:
    """Parameters of each part as the modules create them."""
    vit, cells = cfg.vit, cfg.vit.cells
    patches = jnp.zeros((1, 2, cells, vit.window, 3 * vit.patch**2))
    rows = FrameRows(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    whole, bare = (
        _size(lambda k, x: Vit(vit, PruneConfig(method=method)).init(k, x, rows, 2 * cells), patches)  # noqa: B023
        for method in ("scorer", "none")
    )
    zero = jnp.zeros((1, 4), jnp.int32)
    rule = RowRule.of(zero > 0, zero)
    return {
        "vit": bare,
        "scorer": whole - bare,
        "connector": _size(Connector(cfg.connector, cfg.llm.width).init, jnp.zeros((1, vit.window, vit.feature_width))),
        "llm": _size(Llm(cfg.llm).init, jnp.zeros((1, 4, cfg.llm.width)), zero, rule),
    }


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name: str) -> None:
    counts = flops.parameter_counts(_untied(name))
    assert sum(counts.values()) - counts["scorer"] == RELEASED[name]


def test_parts_of_the_4b_model() -> None:
    counts = flops.parameter_counts(preset("molmo2-4b"))
    assert counts["vit"] == 382_505_936
    assert counts["connector"] == 56_611_328
    assert counts["llm"] == 4_022_795_776
    assert flops.parameter_counts(_untied("molmo2-4b"))["llm"] - counts["llm"] == 388_956_160
    assert round(counts["scorer"] / 1e6, 1) == 33.8


@pytest.mark.parametrize("name", PRESETS)
def test_the_modules_create_exactly_that(name: str) -> None:
    cfg = preset(name)
    assert _evaluated(cfg) == flops.parameter_counts(cfg)


def test_tiny_is_the_size_of_a_demo() -> None:
    cfg = preset("tiny")
    assert cfg.vit.image_size == (72, 72) and cfg.vit.cell_grid.shape == (3, 3)
    assert sum(flops.parameter_counts(cfg).values()) < 2_000_000


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="No model preset is called 'molmo3'; use one of .*'molmo2-4b'"):
        preset("molmo3")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vit", {"feature_layers": (25, 18)}, r"must name blocks 0\.\.24"),
        ("vit", {"feature_layers": (18, 18)}, "names a block twice"),
        ("vit", {"prune_after": 24}, r"a block must follow it, so use 0\.\.23"),
        ("vit", {"cell": (0, 3)}, "must be positive"),
        ("connector", {"mlp": 0}, "ConnectorConfig.mlp is 0"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(part: str, change: dict, message: str) -> None:
    cfg = preset("molmo2-4b")
    wrong = dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **change)})
    with pytest.raises(ValueError, match=message):
        wrong.check()
