"""The connector: masked windows, empty windows, gradients (golden values: tests/golden/molmo2_test.py)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.models.config import ConnectorConfig
from sttts_jax.models.connector import Connector

MODEL = Connector(ConnectorConfig(width=16, heads=2, head_dim=8, mlp=24), out_width=32)
WINDOWS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 9, 32)), jnp.float32)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def params() -> dict:
    boxed = jax.jit(MODEL.init)(jax.random.key(1), WINDOWS)
    # Biases start at zero; make them matter.
    return jax.tree.map(lambda x: x + 0.1, nn.unbox(boxed))


def test_invalid_patches_are_as_good_as_absent(params: dict) -> None:
    valid = jnp.broadcast_to(jnp.arange(9) < 4, (2, 5, 9))
    dirty = jnp.where(valid[..., None], WINDOWS, jnp.nan)
    want = APPLY(params, WINDOWS[:, :, :4])
    np.testing.assert_allclose(APPLY(params, dirty, valid), want, rtol=1e-5, atol=1e-5)


def test_all_valid_is_the_same_as_no_mask(params: dict) -> None:
    got = APPLY(params, WINDOWS, jnp.ones((2, 5, 9), bool))
    np.testing.assert_allclose(got, APPLY(params, WINDOWS), rtol=1e-5, atol=1e-5)


def test_an_empty_window_is_finite_and_has_no_gradient(params: dict) -> None:
    valid = jnp.ones((2, 5, 9), bool).at[0, 0].set(False)

    def total(windows: jax.Array) -> jax.Array:
        return jnp.sum(APPLY(params, windows, valid) ** 2)

    out = APPLY(params, WINDOWS, valid)
    assert jnp.isfinite(out).all()
    grad = jax.jit(jax.grad(total))(WINDOWS)
    assert jnp.isfinite(grad).all() and not grad[0, 0].any() and grad[0, 1].any()


def test_windows_do_not_mix(params: dict) -> None:
    other = APPLY(params, WINDOWS.at[0, 0].add(1.0))
    changed = jnp.abs(other - APPLY(params, WINDOWS)).max(-1) > 0
    np.testing.assert_array_equal(np.argwhere(changed), [[0, 0]])


def test_the_order_inside_a_window_does_not_matter(params: dict) -> None:
    np.testing.assert_allclose(APPLY(params, WINDOWS[:, :, ::-1]), APPLY(params, WINDOWS), rtol=1e-5, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters(params: dict) -> None:
    low = MODEL.clone(dtype=jnp.bfloat16)
    out = jax.jit(low.apply)(params, WINDOWS)
    assert out.dtype == jnp.bfloat16
    created = jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0), WINDOWS))
    assert {x.dtype for x in created} == {jnp.dtype("float32")}
    want = APPLY(params, WINDOWS)
    assert jnp.abs(out.astype(jnp.float32) - want).max() < 0.03 * jnp.abs(want).max()
