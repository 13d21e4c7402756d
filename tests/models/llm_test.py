"""The language model: scan, remat, packing, cache, padding, both block kinds (golden values: tests/golden)."""

import dataclasses
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax import dims
from sttts_jax.models.cache import KvCache
from sttts_jax.models.config import LlmConfig, YarnConfig
from sttts_jax.models.llm import Llm
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.sharding import RULES
from tests.models.looped import looped
from tests.weights import random_weights

QWEN = LlmConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, vocab=60, extra_vocab=4, dropout=0.1)
YARN = YarnConfig(8.0, 1.2, 32.0, 1.0, 64, layers=(1,))
OLMO = dataclasses.replace(QWEN, norm="post", qk_norm="full", kv_heads=4, yarn=YARN, tied=False, rope_theta=1000.0)
BOTH = pytest.mark.parametrize("cfg", [QWEN, OLMO], ids=["qwen3", "olmo3"])

# Two examples and padding: text, vision, text | text, vision, text | padding.
EXAMPLE = np.asarray([[0] * 8 + [1] * 7 + [-1] * 3, [0] * 12 + [-1] * 6], np.int32)
VISION = np.zeros((2, 18), bool)
VISION[0, [1, 2, 3, 4, 9, 10]] = VISION[1, [2, 3, 4, 6, 7]] = True
POSITION = np.asarray([[*range(8), *range(7), 0, 0, 0], [*range(12), 0, 0, 0, 0, 0, 0]], np.int32)
RULE = RowRule.of(jnp.asarray(VISION), jnp.asarray(EXAMPLE))
RNG = np.random.default_rng(0)
PARAMETER_AXES = {name for name in RULES if not name.startswith("act_")}
X = jnp.asarray(RNG.standard_normal((*EXAMPLE.shape, 32)), jnp.float32)


@cache
def _params(cfg: LlmConfig) -> dict:
    params = nn.unbox(jax.jit(Llm(cfg).init)(jax.random.key(1), X, POSITION, RULE))
    # Norm weights start at one, which would hide a norm on the wrong axes.
    return jax.tree.map(lambda x, noise: x + noise / 3, params, random_weights(params))


@partial(jax.jit, static_argnums=(0,))
def _run(model: Llm, params: dict, x: jax.Array, position: jax.Array, rule: RowRule) -> jax.Array:
    return model.apply(params, x, position, rule)[0]


def _hidden(cfg: LlmConfig, params: dict, x: jax.Array = X, **fields) -> jax.Array:
    return _run(Llm(cfg, **fields), params, x, POSITION, RULE)


@BOTH
def test_scan_equals_the_loop(cfg: LlmConfig) -> None:
    params = _params(cfg)
    want = jax.jit(partial(Llm(cfg).apply, method=looped))(params, X, POSITION, RULE)
    np.testing.assert_allclose(_hidden(cfg, params), want, atol=1e-5)


@BOTH
def test_blocks_of_queries_change_nothing(cfg: LlmConfig) -> None:
    params = _params(cfg)
    np.testing.assert_allclose(_hidden(cfg, params), _hidden(cfg, params, query_block=5), atol=1e-5)


def test_remat_policies_give_the_same_finite_gradients_with_dropout() -> None:
    params = _params(QWEN)

    def gradients(remat: str) -> dict:
        model = Llm(QWEN, remat=remat)

        def loss(p: dict) -> jax.Array:
            rngs = {"dropout": jax.random.key(2)}
            hidden, _ = model.apply(p, X, POSITION, RULE, deterministic=False, rngs=rngs)
            return jnp.sum(jnp.square(model.apply(p, hidden, method="logits")))

        return jax.jit(jax.grad(loss))(params)

    want = gradients("none")
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(want))  # with padding in every row
    for remat in ("dots", "attention", "full"):
        for got, ref in zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(got, ref, atol=1e-5 * np.abs(ref).max())


def test_dropout_is_off_by_default_and_random_when_on() -> None:
    params, model = _params(QWEN), Llm(QWEN)

    @jax.jit
    def draw(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(params, X, POSITION, RULE, deterministic=False, rngs=rngs)[0]

    assert jnp.abs(draw(0) - draw(1)).max() > 0.01
    np.testing.assert_array_equal(draw(0), draw(0))
    np.testing.assert_array_equal(_hidden(QWEN, params), _hidden(QWEN, params))


@BOTH
def test_packed_examples_do_not_touch_each_other(cfg: LlmConfig) -> None:
    params = _params(cfg)
    first = EXAMPLE[0] == 0
    base, other = _hidden(cfg, params), _hidden(cfg, params, X.at[0, first].add(1.0))
    np.testing.assert_array_equal(base[0, 8:15], other[0, 8:15])
    np.testing.assert_array_equal(base[1], other[1])
    assert jnp.abs(base[0, :8] - other[0, :8]).max() > 0.01


@BOTH
def test_a_packed_example_equals_the_example_alone(cfg: LlmConfig) -> None:
    params = _params(cfg)
    alone = RowRule.of(RULE.vision[:1, 8:15], jnp.zeros((1, 7), jnp.int32))
    got = _run(Llm(cfg), params, X[:1, 8:15], POSITION[:1, 8:15], alone)
    np.testing.assert_allclose(got, _hidden(cfg, params)[:1, 8:15], atol=1e-5)


@BOTH
def test_padding_is_neutral(cfg: LlmConfig) -> None:
    params = _params(cfg)
    base, other = _hidden(cfg, params), _hidden(cfg, params, X.at[:, 15:].set(7.0))
    np.testing.assert_array_equal(base[0, :15], other[0, :15])
    np.testing.assert_array_equal(base[1, :12], other[1, :12])


@BOTH
def test_prefill_and_decode_equal_the_whole_sequence(cfg: LlmConfig) -> None:
    """Rows of prompt length 6 and 9 in a static prompt of 9 slots, then 5 tokens each."""
    params, model = _params(cfg), Llm(cfg)
    lengths, steps = np.asarray([6, 9]), 5
    vision = jnp.asarray([[0, 1, 1, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 1, 1, 0]]) > 0
    x = jnp.asarray(RNG.standard_normal((2, 9 + steps, 32)), jnp.float32)
    prompt = jnp.arange(9) < lengths[:, None]
    rule = RowRule.of(vision & prompt, jnp.where(prompt, 0, -1))
    extend = jax.jit(lambda x, at, rule, cache: model.apply(params, x, at, rule, cache=cache))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    hidden, store = extend(x[:, :9], positions, rule, KvCache.empty(cfg, 2, 9 + steps, jnp.float32))
    grown, one = [], jnp.ones((2, 1, 1), bool)
    for step in range(steps):
        at = jnp.asarray(lengths + step)[:, None]
        out, store = extend(x[:, 9 + step : 10 + step], at, store.branch_rule(one), store)
        grown.append(out)
    assert extend._cache_size() == 2
    assert store.length == 14 and ((store.rule.example >= 0).sum(-1) == lengths + steps).all()
    for row, length in enumerate(lengths):
        total = length + steps
        order = np.asarray([*range(length), *range(9, 14), *range(length, 9)])  # the same tokens without a gap
        seen = jnp.pad(vision[row, :length], (0, 14 - length))[None]
        whole = RowRule.of(seen, jnp.where(jnp.arange(14) < total, 0, -1)[None])
        want = _run(model, params, x[row, order][None], jnp.arange(14)[None], whole)[0]
        np.testing.assert_allclose(hidden[row, :length], want[:length], atol=1e-5)
        np.testing.assert_allclose(jnp.concatenate(grown, axis=1)[row], want[length:total], atol=1e-5)


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="18 tokens do not fit a cache of 9 slots"):
        Llm(QWEN).apply(_params(QWEN), X, POSITION, RULE, cache=KvCache.empty(QWEN, 2, 9, jnp.float32))


def test_extra_tokens_have_rows_of_their_own_and_no_logits() -> None:
    params, model = _params(QWEN), Llm(QWEN)
    tokens = jnp.asarray([[0, 59, 60, 63]])
    rows = model.apply(params, tokens, method="embed")[0]
    tables = params["params"]
    np.testing.assert_array_equal(rows[1], tables["embedding"][59])
    np.testing.assert_array_equal(rows[2:], tables["new_embedding"][jnp.asarray([0, 3])])
    assert model.apply(params, rows, method="logits").shape == (4, 60)
    grads = jax.grad(lambda p: model.apply(p, tokens, method="embed").sum())(params)["params"]
    np.testing.assert_array_equal(grads["embedding"].any(-1).nonzero()[0], [0, 59])
    np.testing.assert_array_equal(grads["new_embedding"].any(-1).nonzero()[0], [0, 3])


def test_only_an_untied_head_is_a_parameter() -> None:
    assert "head" not in _params(QWEN)["params"]
    params = _params(OLMO)
    np.testing.assert_array_equal(Llm(OLMO).apply(params, method="head_matrix"), params["params"]["head"])


def test_yarn_acts_on_its_layers_alone() -> None:
    params, plain = _params(OLMO), dataclasses.replace(OLMO, yarn=None)
    off = dataclasses.replace(OLMO, yarn=dataclasses.replace(YARN, layers=()))
    np.testing.assert_allclose(_hidden(off, params), _hidden(plain, params), atol=1e-6)
    assert jnp.abs(_hidden(OLMO, params) - _hidden(plain, params)).max() > 1e-3


@BOTH
def test_every_parameter_names_its_axes(cfg: LlmConfig) -> None:
    boxed = jax.eval_shape(Llm(cfg).init, jax.random.key(0), X, POSITION, RULE)
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for box in boxes:
        assert len(box.names) == box.value.ndim and set(box.names) <= PARAMETER_AXES, box.names
    assert sum(box.names[0] == dims.LAYERS for box in boxes) == 9


def test_bfloat16_compute_stays_close_and_keeps_float32_parameters() -> None:
    params = _params(QWEN)
    low = _hidden(QWEN, params, dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    real = EXAMPLE >= 0
    assert jnp.abs(low.astype(jnp.float32) - _hidden(QWEN, params))[real].max() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"norm": "both"}, "use 'pre'"),
        ({"qk_norm": "none"}, "use 'head'"),
        ({"dropout": 1.0}, r"use a rate in \[0, 1\)"),
        ({"layers": 0}, "LlmConfig.layers is 0; it must be positive"),
        ({"yarn": dataclasses.replace(YARN, layers=(2,))}, r"must name blocks 0\.\.1"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QWEN, **change).check()


def _reference(cfg: LlmConfig, params: dict, row: int) -> np.ndarray:
    """The decoder written out in NumPy, float64, one token pair at a time, for the packed row `row`."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    norm = lambda x, scale: x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + cfg.norm_eps) * scale  # noqa: E731
    half, order = cfg.head_dim // 2, np.arange(EXAMPLE.shape[1])
    allowed = (EXAMPLE[row][:, None] == EXAMPLE[row]) & (EXAMPLE[row] >= 0)
    allowed &= (order <= order[:, None]) | (VISION[row] & VISION[row][:, None])

    def turn(x: np.ndarray, layer: int) -> np.ndarray:
        plain = cfg.rope_theta ** -(np.arange(half) / half)
        factor, scale = np.ones(half), 1.0
        if cfg.yarn is not None and layer in cfg.yarn.layers:
            turns = cfg.yarn.original_length * plain / (2 * np.pi)
            place = [np.interp(-np.log(beta), -np.log(turns), np.arange(half)) for beta in (32.0, 1.0)]
            low, high = max(np.floor(place[0]), 0), np.ceil(place[1])
            ramp = np.clip((np.arange(half) - low) / (high - low), 0, 1)
            factor, scale = 1 - ramp + ramp / cfg.yarn.factor, cfg.yarn.attention_factor
        angle = POSITION[row][:, None, None] * plain * factor
        a, b = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(w: dict, x: np.ndarray, layer: int) -> np.ndarray:
        q = np.einsum("se,ehd->shd", x, w["q"])
        k, v = (np.einsum("se,ehd->shd", x, w["kv"][:, i]) for i in range(2))
        if cfg.qk_norm == "full":
            q, k = (
                norm(y.reshape(len(y), -1), w[n].reshape(-1)).reshape(y.shape)
                for y, n in ((q, "q_norm"), (k, "k_norm"))
            )
        else:
            q, k = norm(q, w["q_norm"]), norm(k, w["k_norm"])
        q, k = turn(q, layer), turn(k, layer)
        k, v = (np.repeat(y, cfg.heads // cfg.kv_heads, axis=1) for y in (k, v))
        weights = np.exp(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(cfg.head_dim)) * allowed
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return np.einsum("hqk,khd,hde->qe", weights, v, w["out"])

    def mlp(w: dict, x: np.ndarray) -> np.ndarray:
        gate, up = x @ w["gate_up"][:, 0], x @ w["gate_up"][:, 1]
        return gate / (1 + np.exp(-gate)) * up @ w["down"]

    x = np.asarray(X[row], np.float64)
    for layer in range(cfg.layers):
        w = {name: leaf[layer] for name, leaf in p["blocks"].items()}
        if cfg.norm == "pre":
            x = x + attend(w, norm(x, w["attn_norm"]), layer)
            x = x + mlp(w, norm(x, w["mlp_norm"]))
        else:
            x = x + norm(attend(w, x, layer), w["attn_norm"])
            x = x + norm(mlp(w, x), w["mlp_norm"])
    return norm(x, p["final_norm"])


@BOTH
def test_the_decoder_equals_one_written_out_in_numpy(cfg: LlmConfig) -> None:
    params = _params(cfg)
    for row in range(2):
        real = EXAMPLE[row] >= 0
        np.testing.assert_allclose(_hidden(cfg, params)[row][real], _reference(cfg, params, row)[real], atol=2e-5)
