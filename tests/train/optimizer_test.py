"""Every number of the optimizer against a formula written by hand in numpy."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.mesh import make_mesh
from sttts_jax.sharding import PartitionSpec, shardings_of
from sttts_jax.train.optimizer import (
    VLM_LABELS,
    Optimizer,
    OptimizerConfig,
    all_finite,
    guarded_update,
    make_optimizer,
)
from sttts_jax.trees import label_leaves, named_leaves

STEPS = 20
CONFIG = OptimizerConfig(llm_lr=1e-2, vit_lr=5e-3, warmup=4, weight_decay=0.1, frozen=(r"llm/embedding",))
PLAIN = dataclasses.replace(CONFIG, warmup=0, weight_decay=0.0, clip_norm=0.0)


def make(params: Any, config: OptimizerConfig = CONFIG, total_steps: int = STEPS, **changes: Any) -> Optimizer:
    return make_optimizer(dataclasses.replace(config, **changes), total_steps, params)


def tree(seed: int, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def leaf(*shape: int) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return {"llm": {"embedding": leaf(5, 2), "q": leaf(2, 3), "q_bias": leaf(3)}, "vit": {"w": leaf(4)}}


def rate(config: OptimizerConfig, group: str, step: int) -> float:
    peak = {"llm": 1e-2, "vit": 5e-3}[group]
    if step < config.warmup:
        return peak * step / config.warmup
    if step >= STEPS:
        return 0.1 * peak
    cosine = (1 + math.cos(math.pi * (step - config.warmup) / (STEPS - config.warmup))) / 2
    return 0.1 * peak + 0.9 * peak * cosine


def test_rates_on_the_host() -> None:
    for config in (CONFIG, PLAIN):
        optimizer = make(tree(0), config)
        for step in (1, 3, 4, 5, 12, 19, 20, 21, 500):
            expected = {name: rate(config, name, step) for name in ("llm", "vit")}
            assert optimizer.rates(step) == pytest.approx(expected, rel=1e-12)
    assert make(tree(0)).rates(1) == pytest.approx({"llm": 2.5e-3, "vit": 1.25e-3})


def by_hand(config: OptimizerConfig, params: Any, grads: list[Any]) -> Any:
    """AdamW with a clip per group, decoupled decay, betas 0.9 and 0.95, eps 1e-6 outside the root."""
    weights = config.weight_decay
    flat = {("llm", "q"): weights, ("llm", "q_bias"): 0.0, ("vit", "w"): weights}
    value = {key: np.asarray(params[key[0]][key[1]], np.float64) for key in flat}
    m = {key: np.zeros_like(value[key]) for key in flat}
    v = {key: np.zeros_like(value[key]) for key in flat}
    for step, grad in enumerate(grads, start=1):
        for key, decay in flat.items():
            members = [k for k in flat if k[0] == key[0]]
            norm = math.sqrt(sum((grad[k[0]][k[1]].astype(np.float64) ** 2).sum() for k in members))
            limit = config.clip_norm
            g = grad[key[0]][key[1]] * (min(1.0, limit / (norm + 1e-6)) if limit else 1.0)
            m[key] = 0.9 * m[key] + 0.1 * g
            v[key] = 0.95 * v[key] + 0.05 * g**2
            direction = (m[key] / (1 - 0.9**step)) / (np.sqrt(v[key] / (1 - 0.95**step)) + 1e-6)
            value[key] = value[key] - rate(config, key[0], step) * (direction + decay * value[key])
    return value


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["all", "plain"])
@pytest.mark.parametrize("scale", [1e-3, 3.0])
def test_updates_follow_the_formula(scale: float, config: OptimizerConfig) -> None:
    """Small gradients are not clipped, large ones are; both over 25 steps, past the end of the schedule."""
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make(params, config)
    state, new = optimizer.init(params), params
    grads = [tree(10 + step, scale) for step in range(25)]
    update = jax.jit(optimizer.update)
    for step, grad in enumerate(grads, start=1):
        new, state = update(grad, state, new, step)
    expected = by_hand(config, params, grads)
    for (group, leaf), value in expected.items():
        np.testing.assert_allclose(new[group][leaf], value, rtol=2e-5, atol=2e-6, err_msg=f"{group}/{leaf}")
    np.testing.assert_array_equal(new["llm"]["embedding"], params["llm"]["embedding"])
    assert update._cache_size() == 1


def test_clip_is_per_group_and_norms_are_before_it() -> None:
    params = tree(0)
    optimizer = make(params)
    grads = tree(1, 100.0)
    norms = optimizer.norms(grads)
    assert set(norms) == {"llm", "vit"}
    llm = math.sqrt((grads["llm"]["q"] ** 2).sum() + (grads["llm"]["q_bias"] ** 2).sum())
    assert float(norms["llm"]) == pytest.approx(llm, rel=1e-6)
    assert float(norms["vit"]) == pytest.approx(float(np.linalg.norm(grads["vit"]["w"])), rel=1e-6)


def test_frozen_leaves_have_no_moments() -> None:
    params = tree(0)
    state = make(params).init(params)
    trained = sum(params[g][n].size for g, n in (("llm", "q"), ("llm", "q_bias"), ("vit", "w")))
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * trained


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make(params)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any, number: jax.Array) -> Any:
        finite = all_finite(jnp.float32(1), optimizer.norms(grads))
        return guarded_update(optimizer, grads, state, params, number, finite)

    params, state, finite = step(params, state, tree(1), 1)
    assert finite
    poisoned = tree(2)
    poisoned["vit"]["w"][1] = bad
    kept, kept_state, finite = step(params, state, poisoned, 2)
    assert not finite
    jax.tree.map(np.testing.assert_array_equal, (kept, kept_state), (params, state))
    after, _, _ = step(kept, kept_state, tree(3), 3)
    straight, _, _ = step(params, state, tree(3), 3)
    jax.tree.map(np.testing.assert_array_equal, after, straight)
    assert not all_finite(jnp.float32(bad), optimizer.norms(tree(1)))


def test_an_update_that_leaves_the_numbers_is_none() -> None:
    """Gradients are finite, and the parameters would not be."""
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make(params, llm_lr=3e38, warmup=0)
    state = optimizer.init(params)
    grown = jax.tree.map(lambda leaf: leaf * 0 + 3e38, params)
    assert all_finite(jnp.float32(1), optimizer.norms(tree(1)))
    update = jax.jit(functools.partial(guarded_update, optimizer))
    kept, kept_state, finite = update(tree(1), state, grown, jnp.int32(1), jnp.bool_(True))
    assert not finite
    jax.tree.map(np.testing.assert_array_equal, (kept, kept_state), (grown, state))


@pytest.mark.parametrize(("name", "value"), [("mu", float("nan")), ("nu", float("inf")), ("nu", -1.0)])
def test_damaged_moments_are_not_trained_with(name: str, value: float) -> None:
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make(params)
    damaged = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[0].set(value) if f".{name}" in jax.tree_util.keystr(path) else leaf,
        optimizer.init(params),
    )
    kept, _, finite = guarded_update(optimizer, tree(1), damaged, params, jnp.int32(1), jnp.bool_(True))
    assert not finite
    jax.tree.map(np.testing.assert_array_equal, kept, params)


def test_train_only_freezes_the_rest_and_drops_its_groups() -> None:
    params = jax.tree.map(jnp.asarray, tree(0))
    optimizer = make(params, train_only=(r"llm/q.*", r"llm/embedding"))
    assert set(optimizer.groups) == {"llm"} and set(optimizer.rates(3)) == {"llm"}
    assert list(named_leaves(optimizer.trained(params))) == ["llm/q", "llm/q_bias"]  # `frozen` wins
    grads = jax.grad(lambda t: sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(t)))(optimizer.trained(params))
    assert len(jax.tree.leaves(grads)) == 2 and set(optimizer.norms(grads)) == {"llm"}
    new, _ = optimizer.update(grads, optimizer.init(params), params, 1)
    assert new["vit"]["w"] is params["vit"]["w"] and new["llm"]["embedding"] is params["llm"]["embedding"]
    assert (new["llm"]["q"] != params["llm"]["q"]).all()


def test_an_update_by_the_trained_gradients_alone_is_the_same() -> None:
    params, grads = jax.tree.map(jnp.asarray, tree(0)), jax.tree.map(jnp.asarray, tree(1))
    optimizer = make(params)
    state = optimizer.init(params)
    whole, part = (optimizer.update(g, state, params, 1) for g in (grads, optimizer.trained(grads)))
    jax.tree.map(np.testing.assert_array_equal, whole, part)
    jax.tree.map(np.testing.assert_array_equal, optimizer.norms(grads), optimizer.norms(optimizer.trained(grads)))


def test_frozen_gradients_may_be_anything() -> None:
    params = tree(0)
    optimizer = make(params)
    grads = tree(1)
    grads["llm"]["embedding"][:] = np.nan
    assert all_finite(jnp.float32(1), optimizer.norms(grads))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": (r".*",)}, "leave no parameter to train"),
        ({"frozen": (r"llm/k",)}, r"match no leaf: 'llm/k'"),
        ({"train_only": ("llm/embedding",)}, "leave no parameter to train"),
        ({"train_only": ("llm/q", "llm/k")}, "train_only: 'llm/k' matches no parameter"),
        ({"train_only": ("(",)}, "is no regular expression"),
        ({"total_steps": 4}, "warmup=4 does not end before total_steps=4"),
        ({"total_steps": 0}, "must be at least 1"),
        ({"llm_lr": -1.0}, "optimizer.llm_lr=-1.0 must not be negative"),
        ({"final_fraction": 1.5}, "must lie in 0..1"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tree(0), **changes)


def test_every_leaf_needs_a_group() -> None:
    with pytest.raises(ValueError, match="no rule covers audio/w"):
        make(tree(0) | {"audio": {"w": np.zeros(3, np.float32)}})


def test_labels_of_the_vlm() -> None:
    names = ("vit/scorer/fc1", "vit/blocks/q", "connector/q", "llm/new_embedding", "llm/blocks/q")
    labels = label_leaves({name: np.zeros(1) for name in names}, VLM_LABELS)
    assert [labels[name] for name in names] == ["scorer", "vit", "connector", "connector", "llm"]


def test_groups_are_those_of_the_model() -> None:
    """A model without a scorer or connector has no such groups; one that has them trains them at their rates."""
    assert make(tree(0)).groups == {"llm": 1e-2, "vit": 5e-3}
    params = tree(0)
    params["vit"]["scorer"] = {"fc1": np.zeros(2, np.float32)}
    optimizer = make(params, scorer_lr=0.3)
    assert optimizer.groups == {"llm": 1e-2, "vit": 5e-3, "scorer": 0.3}
    assert optimizer.labels["vit"] == {"w": "vit", "scorer": {"fc1": "scorer"}}


def test_trained_weights_must_be_float32() -> None:
    params = tree(0)
    params["vit"]["w"] = params["vit"]["w"].astype(jnp.bfloat16)
    with pytest.raises(ValueError, match=r"vit/w \(bfloat16\)"):
        make(params)


def test_moments_lie_like_their_parameters() -> None:
    """Boxed parameters give boxed moments, so the whole state's shardings come from one table."""
    names = {"w": ("embed", "mlp"), "embedding": ("vocab", "embed")}
    boxed = {"llm": {name: nn.LogicallyPartitioned(jnp.zeros((8, 16)), axes) for name, axes in names.items()}}
    optimizer = make(nn.meta.unbox(boxed))
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    shardings = shardings_of(jax.eval_shape(lambda: optimizer.init(boxed)), mesh, min_size=1)
    specs = {name: leaf.spec for name, leaf in named_leaves(shardings).items()}
    moments = {name: spec for name, spec in specs.items() if not name.endswith("count")}
    assert len(moments) == 2 and set(moments.values()) == {PartitionSpec(("fsdp",), ("tensor",))}
    assert jax.tree.structure(shardings) == jax.tree.structure(optimizer.init(nn.meta.unbox(boxed)))
