"""Activations and norms are their formulas, and keep nothing for the gradient but their arguments."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.activation import gelu_tanh, swiglu
from sttts_jax.ops.norm import layer_norm, rms_norm

CASES: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], int]] = {
    "gelu": (gelu_tanh, lambda x: 0.5 * x * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3))), 1),
    "swiglu": (swiglu, lambda gate, up: gate / (1 + jnp.exp(-gate)) * up, 2),
    "rms_norm": (
        functools.partial(rms_norm, scale=jnp.full(16, 1.5), eps=1e-6),
        lambda x: 1.5 * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6),
        1,
    ),
    "layer_norm": (
        functools.partial(layer_norm, scale=jnp.full(16, 1.5), bias=jnp.full(16, 0.5), eps=1e-6),
        lambda x: 1.5 * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) + 0.5,
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    function, formula, number = CASES[name]
    args = tuple(3 * jax.random.normal(jax.random.key(i), (8, 16)) for i in range(number))
    got, back = jax.vjp(function, *args)
    want, back_of_formula = jax.vjp(formula, *args)
    slope = jax.random.normal(jax.random.key(9), want.shape)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back(slope), back_of_formula(slope))


def _kept(function: Callable[..., jax.Array], *args: Any) -> int:
    """Numbers of the size of an argument that a scan over `function` keeps for its gradient, arguments included."""

    def layers(*args: jax.Array) -> jax.Array:
        def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + function(x, *args[1:]), None

        return jax.lax.scan(layer, args[0], length=5)[0]

    saved = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(layers, *args)[1], *args))
    return sum(x.size for x in saved if x.ndim == 3) // (5 * args[0].size)


@pytest.mark.parametrize("name", CASES)
def test_a_scan_keeps_the_input_alone(name: str) -> None:
    function, formula, number = CASES[name]
    args = (jnp.ones((8, 16)),) * number
    assert _kept(function, *args) == 1
    assert _kept(formula, *args) > 1
