"""Weights: names, axes and dtypes of parameters, their first values, and the linear layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax import dims
from sttts_jax.ops.layers import Einsum, Initializer, fan_in, fan_in_gain, normal, weight

OUT = (dims.HEADS, dims.HEAD_DIM, dims.EMBED)
X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 4, 8)), jnp.float32)  # [.., H, d]


def _out(dtype: jnp.dtype = jnp.float32) -> Einsum:
    return Einsum((4, 8, 16), OUT, fan_in_gain(2), inputs=2, dtype=dtype)


def test_the_linear_layer_starts_and_computes_as_that_of_flax_bit_for_bit() -> None:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    theirs = nn.DenseGeneral(16, axis=(-2, -1), kernel_init=init)
    ours = nn.unbox(_out().init(jax.random.key(3), "...Hd,HdD->...D", X))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs.init(jax.random.key(3), X))
    moved = jax.tree.map(lambda leaf: leaf + 0.5, ours)  # a bias of zero would say nothing
    np.testing.assert_array_equal(_out().apply(moved, "...Hd,HdD->...D", X), theirs.apply(moved, X))


def test_parameters_have_names_axes_and_float32_whatever_is_computed_in() -> None:
    boxed = _out(jnp.bfloat16).init(jax.random.key(0), "...Hd,HdD->...D", X)["params"]
    assert boxed["kernel"].names == OUT and boxed["bias"].names == OUT[2:]
    params = nn.unbox(boxed)
    assert {name: leaf.shape for name, leaf in params.items()} == {"kernel": (4, 8, 16), "bias": (16,)}
    assert all(leaf.dtype == jnp.float32 for leaf in params.values())
    assert _out(jnp.bfloat16).apply({"params": params}, "...Hd,HdD->...D", X).dtype == jnp.bfloat16


def test_a_weight_belongs_to_the_module_that_asks() -> None:
    class Table(nn.Module):
        @nn.compact
        def __call__(self) -> jax.Array:
            return weight(self, "rows", normal(1.0), (7, 4), (dims.VOCAB, dims.EMBED), jnp.bfloat16)

    rows, params = Table().init_with_output(jax.random.key(0))
    assert params["params"]["rows"].names == (dims.VOCAB, dims.EMBED)
    assert rows.dtype == jnp.bfloat16 and nn.unbox(params)["params"]["rows"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("init", "std"),
    [(fan_in(1), 1 / 8), (fan_in(2), 1 / 16), (fan_in_gain(2), 1 / 16), (fan_in_gain(1, gain=6.0), 6 / 8)],
)
def test_the_first_axes_are_the_input(init: Initializer, std: float) -> None:
    values = init(jax.random.key(1), (64, 4, 500), jnp.float32)
    assert jnp.std(values) == pytest.approx(std, rel=0.01)
    assert jnp.abs(values).max() < 2.3 * std  # cut at two standard deviations of what was not cut
