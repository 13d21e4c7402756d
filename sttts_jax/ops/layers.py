"""How weights are made: parameters with named axes, the linear layer, and the rule that sizes their first values.

One rule for every matrix: variance 1 / fan-in. At the widths of the released models this is the 0.02 that Molmo2 uses
(1 / sqrt(2560) = 0.0198), and unlike a fixed 0.02 it keeps activations near one in a narrow model that trains from
scratch. Where weights lie in the tree is the model's: `weight` puts one into the calling module, under any name, and
`Einsum` is a module of its own with a kernel and a bias.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = jax.nn.initializers.Initializer

zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones
normal = jax.nn.initializers.normal  # of a standard deviation; for tables whose rows are looked up, width ** -0.5


def fan_in(inputs: int) -> Initializer:
    """Normal with variance 1 / fan-in, cut at two standard deviations; the first `inputs` axes are the input."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        # 0.8796 is the standard deviation of a unit normal cut at +-2.
        std = math.prod(shape[:inputs]) ** -0.5 / 0.87962566103423978
        return jax.nn.initializers.truncated_normal(std)(key, shape, dtype, out_sharding)

    return init


def fan_in_gain(inputs: int, gain: float = 1.0) -> Initializer:
    """`fan_in` times `gain` by JAX's formula, which rounds more often: the last bit of what a seed gives differs."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        axes = tuple(range(inputs)), tuple(range(inputs, len(shape)))
        scaled = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal", *axes)
        return scaled(key, shape, dtype, out_sharding)

    return init


def weight(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...] | None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The float32 parameter `name` of `module` with the logical `axes`, or a plain array (None), cast to `dtype`.

    Its first value depends on the seed, on the module's place in the tree, and on how many parameters the module made
    before: keep the order of calls.
    """
    named = init if axes is None else nn.with_logical_partitioning(init, axes)
    return module.param(name, named, shape, jnp.float32).astype(dtype)


class Einsum(nn.Module):
    """einsum(equation, x, kernel) + bias in `dtype`; the equation is told at the call.

    Parameters: kernel of `shape`, its first `inputs` axes summed over, and bias of the other ones, zeros at first.
    `axes` are the logical names of the kernel's axes (None: plain arrays), `kernel_init` its first values. `jnp.einsum`
    sums over letters in the order of their codes: H before d, the glossary's, is the order of memory, and h after d
    would turn both inputs over.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...] | None
    kernel_init: Initializer
    inputs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        kernel = weight(self, "kernel", self.kernel_init, self.shape, self.axes, self.dtype)
        outs = None if self.axes is None else self.axes[self.inputs :]
        bias = weight(self, "bias", zeros, self.shape[self.inputs :], outs, self.dtype)
        return jnp.einsum(equation, x.astype(self.dtype), kernel) + bias
