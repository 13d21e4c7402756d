"""The nonlinear parts of the MLPs. Their gradients start from the input alone, see `recomputed`."""

import jax

from sttts_jax.ops.remat import recomputed


@recomputed
def gelu_tanh(x: jax.Array) -> jax.Array:
    """x * Phi(x) by the tanh formula, which SigLIP2 was trained with."""
    return jax.nn.gelu(x, approximate=True)


@recomputed
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up."""
    return jax.nn.silu(gate) * up
