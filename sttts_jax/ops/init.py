"""Initialisers. One rule for every matrix: variance 1 / fan-in.

At the widths of the released models this is the 0.02 that Molmo2 uses (1 / sqrt(2560) = 0.0198), and unlike a fixed
0.02 it keeps activations near one in a narrow model that trains from scratch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]

zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def fan_in(input_axes: int) -> Initializer:
    """Normal with variance 1 / fan-in, cut at two standard deviations; the first `input_axes` axes are the input."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        # 0.8796 is the standard deviation of a unit normal cut at +-2.
        std = math.prod(shape[:input_axes]) ** -0.5 / 0.87962566103423978
        return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

    return init


def rows(std: float) -> Initializer:
    """Normal with the given standard deviation, for tables whose rows are looked up."""
    return jax.nn.initializers.normal(std)
