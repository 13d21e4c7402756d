"""The scorer: what it computes, what it sees, and where its items begin."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sttts_jax.pruning.scorer import Scorer
from tests.pruning.cases import frame_rows
from tests.weights import random_weights

FRAMES, CELLS, WINDOW, WIDTH, HEADS = 5, 4, 4, 8, 2
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, FRAMES, CELLS, WINDOW, WIDTH)), jnp.float32)
ROWS = frame_rows([("video", 3), ("video", 2)], [("image", 1), ("video", 3)], frames=FRAMES)
SCORER = Scorer(heads=HEADS, head_dim=4, mlp=12)


@pytest.fixture(scope="module", name="params")
def _params() -> dict:
    params = nn.unbox(jax.jit(SCORER.init)(jax.random.key(0), X, ROWS))["params"]
    # Biases start at zero and the pooler near it; make all matter.
    return jax.tree.map(jnp.add, params, random_weights(params, seed=1))


def _run(params: dict, x: jax.Array, across: bool = False, rows=ROWS) -> np.ndarray:
    return np.asarray(jax.jit(SCORER.clone(across_items=across).apply)({"params": params}, x, rows))


def _by_hand(params: dict, previous: np.ndarray, cell: np.ndarray) -> float:
    """One cell and the same cell a frame earlier (zeros: none), [W, D] each, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def pool(patches: np.ndarray) -> np.ndarray:
        w = p["pooler"]
        q = np.einsum("d,dhk->hk", patches.mean(axis=0), w["query"]["kernel"]) + w["query"]["bias"]
        k = np.einsum("wd,dhk->whk", patches, w["key"]["kernel"]) + w["key"]["bias"]
        v = np.einsum("wd,dhk->whk", patches, w["value"]["kernel"]) + w["value"]["bias"]
        logits = np.einsum("hk,whk->hw", q, k) / 2
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return np.einsum("hw,whk,hkd->d", weights, v, w["out"]["kernel"]) + w["out"]["bias"]

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    pair = np.concatenate([np.zeros(WIDTH) if previous is None else pool(previous), pool(cell)])
    x = silu(pair @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    x = silu(x @ p["fc2"]["kernel"] + p["fc2"]["bias"])
    return float((x @ p["fc3"]["kernel"] + p["fc3"]["bias"])[0])


@pytest.mark.parametrize("across", [False, True])
def test_formula(params: dict, across: bool) -> None:
    got, x = _run(params, X, across), np.asarray(X, np.float64)
    assert got.shape == (2, FRAMES, CELLS)
    starts = {(0, 0), (1, 0)} if across else {(0, 0), (0, 3), (1, 0), (1, 1)}
    for row, frame in [(0, 0), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]:
        for cell in (0, 3):
            previous = None if (row, frame) in starts else x[row, frame - 1, cell]
            np.testing.assert_allclose(
                got[row, frame, cell], _by_hand(params, previous, x[row, frame, cell]), rtol=1e-4
            )


def test_a_score_depends_on_its_cell_and_its_predecessor_only(params: dict) -> None:
    before = _run(params, X)
    changed = np.argwhere(_run(params, X.at[0, 1, 2].add(1.0)) != before)
    np.testing.assert_array_equal(changed, [[0, 1, 2], [0, 2, 2]])
    last_of_first = np.argwhere(_run(params, X.at[0, 2, 0].add(1.0)) != before)
    np.testing.assert_array_equal(last_of_first, [[0, 2, 0]])
    across = np.argwhere(_run(params, X.at[0, 2, 0].add(1.0), True) != _run(params, X, True))
    np.testing.assert_array_equal(across, [[0, 2, 0], [0, 3, 0]])


def test_low_precision_keeps_float32_logits(params: dict) -> None:
    low = jax.jit(SCORER.clone(dtype=jnp.bfloat16).apply)({"params": params}, X.astype(jnp.bfloat16), ROWS)
    assert low.dtype == jnp.float32
    rounded = low.astype(jnp.bfloat16).astype(jnp.float32)
    assert (low != rounded).mean() > 0.9, "the last layer must not round: that makes ties"
    np.testing.assert_allclose(low, _run(params, X), atol=0.1 * np.abs(_run(params, X)).max())


def test_initial_spread() -> None:
    """Truncated normal of standard deviation sqrt(1 / fan in) for the MLP, 0.02 for the pooler, biases 0."""
    wide = Scorer(heads=4, head_dim=32, mlp=256)
    rows = frame_rows([("video", 2)], frames=2)
    params = nn.unbox(jax.jit(wide.init)(jax.random.key(0), jnp.zeros((1, 2, 1, 1, 128)), rows))["params"]
    for name, fan in (("fc1", 256), ("fc2", 256)):
        np.testing.assert_allclose(params[name]["kernel"].std(), fan**-0.5, rtol=0.03)
    for part in params["pooler"].values():
        np.testing.assert_allclose(part["kernel"].std(), 0.02, rtol=0.05)
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert len(biases) == 7 and not any(b.any() for b in biases)


@pytest.mark.parametrize("rows", [ROWS, frame_rows([("video", 5)], frames=FRAMES)])
def test_patches_that_are_not_in_cells_are_refused(rows) -> None:
    patches = X.reshape(*X.shape[:2], CELLS * WINDOW, WIDTH)
    with pytest.raises(
        ValueError, match=r"cells has shape \(2, 5, 16, 8\).* need .*C, W, D\); put patches .* into cells"
    ):
        jax.eval_shape(SCORER.init, jax.random.key(0), patches, rows)


def _loss(apply, x: jax.Array):
    return lambda params: jnp.sum(jnp.sin(apply(params, x, ROWS)))


def test_plain_arrays_are_the_same_parameters() -> None:
    boxed = SCORER.init(jax.random.key(0), X, ROWS)
    plain = SCORER.clone(partitioned=False).init(jax.random.key(0), X, ROWS)
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    assert len(boxes) == 14 and all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(boxed), plain)


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_mesh_of_the_users_own(partitioned: bool) -> None:
    """Axes that no rule of ours knows: Linen leaves the names of the boxes alone, and the result is that of no mesh."""
    scorer = SCORER.clone(partitioned=partitioned)
    alone = jax.jit(scorer.init)(jax.random.key(0), X, ROWS)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("x", None, "y")))
        params = jax.jit(scorer.init)(jax.random.key(0), x, ROWS)
        value, grads = jax.jit(jax.value_and_grad(_loss(scorer.apply, x)))(params)
    want, want_grads = jax.value_and_grad(_loss(scorer.apply, X))(alone)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), grads, want_grads)


@pytest.mark.parametrize("axes", [None, ("x", "y")])
def test_inside_an_nnx_model(axes: tuple[str, str] | None) -> None:
    """Initial parameters, logits and gradients are Linen's, without a mesh and under one with the user's own axes."""
    nnx = pytest.importorskip("flax.nnx", exc_type=Exception)
    scorer = SCORER.clone(partitioned=False)
    mesh = jax.make_mesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2) if axes else None
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        model = nnx.bridge.lazy_init(nnx.bridge.ToNNX(scorer, rngs=nnx.Rngs(0)), X, ROWS)
        value, grads = nnx.value_and_grad(lambda model: jnp.sum(jnp.sin(model(X, ROWS))))(model)
    params = {"params": _arrays(nnx.state(model, nnx.Param))}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, scorer.init(jax.random.key(0), X, ROWS))
    want, want_grads = jax.value_and_grad(_loss(scorer.apply, X))(params)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), {"params": _arrays(grads)}, want_grads
    )
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext(), pytest.raises(ValueError, match="mesh"):
        nnx.bridge.lazy_init(nnx.bridge.ToNNX(SCORER, rngs=nnx.Rngs(0)), X, ROWS)


def _arrays(state) -> dict:
    """An NNX state as the nested dict of arrays that Linen has."""
    from flax import nnx

    return nnx.to_pure_dict(state)
