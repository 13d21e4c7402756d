"""LoRA: nothing at the start, the merged model ever after; the base tree is what it is without it."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sttts_jax import dims
from sttts_jax.models import flops
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.llm import Llm
from sttts_jax.models.lora import LoraConfig, factor_index, factor_names, merged_leaf
from sttts_jax.models.presets import preset
from sttts_jax.models.vlm import Vlm
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.train.optimizer import OptimizerConfig, make_optimizer
from sttts_jax.trees import leaf_names, named_leaves, param_count
from tests.models.batches import Sizes, Talk, make_batch
from tests.models.looped import looped
from tests.models.merged import merge
from tests.models.small import CFG
from tests.weights import random_weights

EVERYTHING = (r"llm/blocks/(q|kv|out|gate_up|down)", r"vit/blocks_.*/(qkv|out|fc1|fc2)")
LORA = LoraConfig(rank=3, alpha=6.0, targets=EVERYTHING)
STTS = PruneConfig()
FRAMES, CELLS, TEXT = 3, CFG.vit.cells, 9
SIZES = Sizes(FRAMES, CELLS, FRAMES * (CELLS + 1) + TEXT, CFG.llm.vocab)
BATCH = make_batch([[Talk(frames=3, branches=(3, 2))], [Talk(frames=2, seed=1)]], SIZES)


def _cfg(lora: LoraConfig | None = LORA) -> VlmConfig:
    return dataclasses.replace(CFG, lora=lora).check()


def _model(cfg: VlmConfig, prune: PruneConfig = STTS) -> Vlm:
    return Vlm(cfg, prune, capacity=FRAMES * CELLS, length=SIZES.unpruned)


@functools.cache
def _fresh(cfg: VlmConfig) -> Any:
    return nn.unbox(jax.jit(_model(cfg).init)(jax.random.key(0), BATCH))["params"]


def _is_factor(name: str) -> bool:
    return name.endswith(("_lora_a", "_lora_b"))


def _noisy(params: Any) -> Any:
    """Random factors, so that LoRA changes the function."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x, noise: noise if _is_factor(path[-1].key) else x, params, random_weights(params)
    )


def _without_factors(params: Any) -> Any:
    return {
        name: _without_factors(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if not _is_factor(name)
    }


def _hidden(model: Vlm, params: Any) -> jax.Array:
    return jax.jit(lambda params: model.apply({"params": params}, BATCH)[0])(params)


def test_at_the_start_it_is_the_base_model() -> None:
    params = _fresh(_cfg())
    base = _hidden(_model(CFG), _without_factors(params))
    np.testing.assert_allclose(_hidden(_model(_cfg()), params), base, atol=1e-5)
    assert all(not value.any() for name, value in named_leaves(params).items() if name.endswith("_lora_b"))


@pytest.mark.parametrize(
    "prune",
    [STTS, PruneConfig(packing="bins"), PruneConfig(method="none")],
    ids=["staircase", "bins", "unpruned"],
)
def test_merged_it_is_the_same_function(prune: PruneConfig) -> None:
    params = _noisy(_fresh(_cfg()))
    if not prune.has_scorer:
        params["vit"].pop("scorer", None)
    merged = merge(params, LORA)
    adapted = _hidden(_model(_cfg(), prune), params)
    np.testing.assert_allclose(_hidden(_model(CFG, prune), merged), adapted, atol=2e-5)
    assert jnp.abs(adapted - _hidden(_model(CFG, prune), _without_factors(params))).max() > 0.01


@pytest.mark.parametrize("kind", ["qwen3", "olmo3"])
def test_scanned_and_unrolled_are_the_same(kind: str) -> None:
    cfg = CFG.llm if kind == "qwen3" else dataclasses.replace(CFG.llm, norm="post", qk_norm="full", kv_heads=2)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 6, cfg.width)), jnp.float32)
    zero = jnp.zeros((1, 6), jnp.int32)
    rule = RowRule.of(zero > 0, zero)
    lora = LoraConfig(2, 1.0, EVERYTHING[:1])
    params = _noisy(nn.unbox(jax.jit(Llm(cfg, lora=lora).init)(jax.random.key(0), x, zero, rule)))

    def run(model: Llm, params: Any) -> jax.Array:
        return jax.jit(lambda params: model.apply(params, x, zero, rule)[0])(params)

    want = run(Llm(cfg, lora=lora), params)
    loop = jax.jit(lambda params: Llm(cfg, lora=lora).apply(params, x, zero, rule, method=looped))
    np.testing.assert_allclose(loop(params), want, atol=1e-5)
    np.testing.assert_allclose(run(Llm(cfg, lora=lora, remat="full"), params), want, atol=1e-5)
    merged = {"params": merge(params["params"], lora)}
    np.testing.assert_allclose(run(Llm(cfg), merged), want, atol=1e-5)


def test_without_lora_the_tree_is_the_base_tree() -> None:
    adapted, base = _fresh(_cfg()), _fresh(CFG)
    assert jax.tree.structure(_without_factors(adapted)) == jax.tree.structure(base)
    assert not any(_is_factor(name) for name in leaf_names(base))
    np.testing.assert_array_equal(
        adapted["vit"]["blocks_02_02"]["qkv"]["kernel"], base["vit"]["blocks_02_02"]["qkv"]["kernel"]
    )


def test_factors_stand_beside_their_projections_with_the_layers_first() -> None:
    leaves = named_leaves(_fresh(_cfg()))
    llm, vit = CFG.llm, CFG.vit
    assert leaves["llm/blocks/kv_lora_a"].shape == (llm.layers, llm.width, 3)
    assert leaves["llm/blocks/kv_lora_b"].shape == (llm.layers, 3, 2, llm.kv_heads, llm.head_dim)
    assert leaves["llm/blocks/out_lora_a"].shape == (llm.layers, llm.heads, llm.head_dim, 3)
    assert leaves["llm/blocks/gate_up_lora_b"].shape == (llm.layers, 3, 2, llm.mlp)
    assert leaves["vit/blocks_00_00/qkv_lora_b"].shape == (1, 3, 3, vit.heads, vit.head_dim)
    assert {name for name in leaves if _is_factor(name)} == {
        name for projection in _cfg().projections for name in factor_names(projection)
    }


def test_axes_have_names() -> None:
    boxed = jax.eval_shape(_model(_cfg()).init, jax.random.key(0), BATCH)["params"]["llm"]["blocks"]
    assert boxed["kv_lora_a"].names == (dims.LAYERS, dims.EMBED, dims.LORA)
    assert boxed["kv_lora_b"].names == (dims.LAYERS, dims.LORA, dims.QKV, dims.KV_HEADS, dims.HEAD_DIM)


def test_only_what_a_target_names_is_adapted_and_counted() -> None:
    lora = LoraConfig(2, 4.0, ("llm/blocks/q", r"vit/blocks_02_.*/fc[12]"))
    cfg = _cfg(lora)
    params = _fresh(cfg)
    factors = [name for name in leaf_names(params) if _is_factor(name)]
    places = ("llm/blocks/q", "vit/blocks_02_02/fc1", "vit/blocks_02_02/fc2")
    assert sorted(factors) == sorted(name for place in places for name in factor_names(place))
    counts = flops.parameter_counts(cfg)
    assert sum(counts.values()) == param_count(params)
    assert counts["lora"] == 2 * 2 * (16 + 16) + 2 * 2 * (16 + 24) == flops.lora_parameters(cfg)


@pytest.mark.parametrize("name", ["tiny", "molmo2-4b", "molmo2-o-7b"])
def test_counts_of_every_target(name: str) -> None:
    cfg = dataclasses.replace(preset(name), lora=LORA).check()
    counts = flops.parameter_counts(cfg)
    assert counts == {**flops.parameter_counts(preset(name)), "lora": flops.lora_parameters(cfg)}
    sides = cfg.llm.layers * sum(a + b for layers, a, b in cfg.projections.values() if layers == cfg.llm.layers)
    assert counts["lora"] >= 3 * sides


def test_frozen_base_gets_neither_gradient_nor_update() -> None:
    params = _noisy(_fresh(_cfg()))
    rates = dict.fromkeys(("llm_lr", "vit_lr", "connector_lr", "scorer_lr"), 1e-2)
    config = OptimizerConfig(**rates, warmup=0, train_only=(r".*_lora_[ab]", "vit/scorer/.*"))
    optimizer, model = make_optimizer(config, 5, params), _model(_cfg())

    def loss(trained: Any, params: Any) -> jax.Array:
        out = model.apply({"params": optimizer.joined(trained, params)}, BATCH, method="loss")
        return out.task.cross_entropy + out.aux

    @jax.jit
    def update(params: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss)(optimizer.trained(params), params)
        return grads, optimizer.update(grads, optimizer.init(params), params, jnp.int32(1))[0]

    grads, new = update(params)
    moved = {name for name, value in named_leaves(new).items() if (value != named_leaves(params)[name]).any()}
    wanted = {name for name in leaf_names(params) if _is_factor(name) or name.startswith("vit/scorer/")}
    assert set(leaf_names(grads)) == wanted and moved <= wanted
    assert {name for name in wanted if _is_factor(name)} <= moved


def test_slices_of_one_layer_merge_alike() -> None:
    """What a streaming export does: a layer, and one part of a fused leaf, at a time; NumPy and bfloat16."""
    rng = np.random.default_rng(2)
    w, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((4, 6, 2, 3, 5), (4, 6, 2), (4, 2, 2, 3, 5)))
    whole = merged_leaf(w, a, b, 0.5)
    np.testing.assert_allclose(whole, w + 0.5 * np.einsum("ler,lrthd->lethd", a, b), atol=1e-5)
    for index in ((1,), (2, slice(None), 1), (slice(1, 3),), (3, slice(2, 5), 0, 2)):
        at_a, at_b = factor_index(index, a.ndim)
        part = merged_leaf(w[index], a[at_a], b[at_b], 0.5)
        np.testing.assert_allclose(part, whole[index], atol=1e-6)
    low = merged_leaf(w.astype(ml_dtypes.bfloat16), a, b, 0.5)
    assert isinstance(low, np.ndarray) and low.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), whole, atol=0.1)
    assert factor_names("vit/blocks_00_03/qkv/kernel")[0] == "vit/blocks_00_03/qkv_lora_a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ("llm/blocks/qq",)},
            "'llm/blocks/qq' matches no projection; they are llm/blocks/q, llm",
        ),
        ({"targets": ("connector/.*",)}, "matches no projection"),
        ({"targets": ("(",)}, "is no regular expression"),
        ({"targets": ()}, "has no targets"),
        ({"rank": 0}, "rank 0 must be at least 1"),
        ({"alpha": 0.0}, "alpha 0.0 must be positive"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cfg(dataclasses.replace(LORA, **changes))
