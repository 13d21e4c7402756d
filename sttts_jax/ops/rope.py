"""Rotary position embedding in the rotate-half form, plain and YaRN; angles and rotation in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/d) for i = 0 .. d/2 - 1, float32 [d/2]."""
    return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)


def yarn_frequencies(
    head_dim: int, theta: float, *, factor: float, beta_fast: float, beta_slow: float, original_length: int
) -> np.ndarray:
    """YaRN (arXiv 2309.00071): fast dimensions keep their frequency, slow ones are divided by `factor`; float32 [d/2].

    A dimension is fast if it turns more than `beta_fast` times over `original_length`, slow below `beta_slow`, with
    a linear ramp between, whose ends are rounded outwards to whole dimensions.
    """

    def dimension(turns: float) -> float:
        return head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(beta_fast)), 0)
    high = min(math.ceil(dimension(beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float64) - low) / max(high - low, 1e-3), 0.0, 1.0)
    plain = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return (plain * (1.0 - ramp) + plain / factor * ramp).astype(np.float32)


def rope_tables(positions: jax.Array, frequencies: np.ndarray, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the angles, times `scale` (YaRN's attention factor): int [...] -> two float32 [..., d/2]."""
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [..., S, H, d] by tables [..., S, d/2]; the pair of i is i + d/2. Result in x.dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
