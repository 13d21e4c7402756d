"""How long the prefill of a batch takes at several shares removed: one process, interleaved, medians."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sttts_jax.data.device import to_device
from sttts_jax.data.schema import RowShape, full_rows
from sttts_jax.infer.checkpoint import Checkpoint

ROUNDS = 9


def prefill_seconds(shapes: Sequence[tuple[Checkpoint, RowShape]], rows: int) -> list[float]:
    """Median seconds of one prefill of `rows` full rows, for each checkpoint and bucket.

    Everything is compiled first; then all take turns, so that a slow minute of the machine hits all alike. What is in
    the batch does not matter to its time: shapes are static, so rows of black frames take as long as any others.
    """
    programs = [_program(checkpoint, shape, rows) for checkpoint, shape in shapes]
    for program in programs:
        _seconds(program)  # warms up
    times = [[_seconds(program) for program in programs] for _ in range(ROUNDS)]  # [round][program]
    return [float(np.median(seconds)) for seconds in zip(*times, strict=True)]


def _seconds(program: Callable[[], Any]) -> float:
    before = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - before


def _program(checkpoint: Checkpoint, shape: RowShape, rows: int) -> Callable[[], Any]:
    model = checkpoint.model(shape)

    def prefill(params: Any, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        return model.apply({"params": params}, batch, shape.length, rng, method="prefill")[0]

    with jax.set_mesh(checkpoint.mesh):
        arrays = to_device(
            full_rows(shape, checkpoint.layout.rows_per_process(rows)), checkpoint.layout.sharding(), rows
        )
        key = checkpoint.key(0)
        compiled = jax.jit(prefill).lower(checkpoint.params, arrays, key).compile()
    return lambda: compiled(checkpoint.params, arrays, key)
