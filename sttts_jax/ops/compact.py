"""Which positions of a mask are set, by counting: sorting thousands of numbers takes a TPU compiler many seconds."""

import jax
import jax.numpy as jnp

from sttts_jax.ops.attention.tpu_blocks import LANES


def places(mask: jax.Array) -> jax.Array:
    """bool [.., n, m] -> int32 [.., n, m]: how many of its n * m, in the order of memory, are set before each."""
    inside = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)  # [.., n, m]
    total = inside[..., -1:]  # [.., n, 1]
    return inside - mask + jnp.cumsum(total, axis=-2) - total


def set_positions(mask: jax.Array, size: int) -> jax.Array:
    """bool [n, m] -> int32 [size]: its set positions in the order of memory, n * m after the last; cut at `size`.

    Each is found by counting the lines that end before it, and then the places inside its line: O(size * (n + m)).
    """
    lines, width = mask.shape
    inside = jnp.cumsum(mask, axis=1, dtype=jnp.int32)  # [n, m]
    ends = jnp.cumsum(inside[:, -1])  # [n], of each line's in the list
    wanted = jnp.arange(size, dtype=jnp.int32)  # [size]
    line = jnp.minimum(jnp.sum(ends[:, None] <= wanted, axis=0), lines - 1)  # [size]
    rank = wanted - (ends - inside[:, -1])[line]  # [size], in its line
    at = jnp.sum(inside[line] <= rank[:, None], axis=1)  # [size]
    return jnp.where(wanted < ends[-1], line * width + at, lines * width).astype(jnp.int32)


def in_lines(mask: jax.Array) -> jax.Array:
    """bool [.., N] -> [.., ceil(N / LANES), LANES], not set where it is filled up."""
    length = mask.shape[-1]
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -length % LANES)])
    return mask.reshape(*mask.shape[:-1], -1, LANES)
