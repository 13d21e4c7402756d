"""What the Pallas TPU kernels share: constants, and operations on the blocks of a step."""

import jax
import jax.numpy as jnp

VMEM_BYTES = 64 * 2**20
LANES = 128


def dot(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """Matrix product over axis over[0] of a and over[1] of b, summed in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a, b, (((over[0],), (over[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def column(row: jax.Array) -> jax.Array:
    """[1, n] -> [n, 1]."""
    # Mosaic turns over whole tiles, not one row.
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def alive(x: jax.Array, ids: jax.Array | None) -> jax.Array:
    """x with zeros where there is no token: padding or what lies beyond the array may be NaN, and NaN * 0 is."""
    return x if ids is None else jnp.where(ids >= 0, x, jnp.zeros_like(x))
