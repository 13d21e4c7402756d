"""Numpy batches to global arrays. The only file of the data layer that knows jax."""

from collections.abc import Mapping

import jax
import numpy as np


def to_device(
    batch: Mapping[str, np.ndarray],
    sharding: jax.sharding.Sharding | Mapping[str, jax.sharding.Sharding],
    rows: int | None = None,
) -> dict[str, jax.Array]:
    """This process's rows of every array -> global arrays of `rows` rows (by default the rows of one process times
    the processes).

    `sharding` is one for all arrays, splitting the first axis, or one by name. Works under a transfer guard: the copy
    is explicit.
    """
    placed = {}
    for name, value in batch.items():
        one = sharding[name] if isinstance(sharding, Mapping) else sharding
        shape = (rows or len(value) * jax.process_count(), *value.shape[1:])
        placed[name] = jax.make_array_from_process_local_data(one, value, shape)
    return placed
