"""Weights of which none is trivial: a scale of one or a bias of zero hides where it is applied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_weights(shapes: Any, seed: int = 0) -> Any:
    """float32 normals of deviation 0.3 in the shapes of a tree of arrays."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32) for x in leaves])
