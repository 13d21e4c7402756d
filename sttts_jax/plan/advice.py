"""What to change so that a step fits, cheapest first: by arithmetic, nothing is compiled for it.

Order: remat (costs arithmetic), parameters over more devices (costs gathers), micro-batches (cost the gathers once
more each), more devices; what changes the training, the share that is removed and frames, comes last.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sttts_jax.plan.memory import Memory
from sttts_jax.train.config import RunConfig

GIB = 2**30
_LIGHTER = ("none", "dots", "attention", "full")  # each keeps less than the one before


@dataclass(frozen=True)
class Setting:
    """What is planned: a bucket of a run, the mesh's shape, and {remat: bytes that the backward pass keeps} of it."""

    bucket: RunConfig
    mesh: Mapping[str, int]
    activations: Callable[[str], int]


def what_to_change(setting: Setting, memory: Memory, have: int) -> list[str]:
    """Lines for people: each change that should make the step fit into `have` bytes by itself, or all of them."""
    changes = list(_changes(setting, memory))
    fitting = [f"set {text}: about {after / GIB:.1f} GiB" for text, after in changes if after <= have]
    last = (
        "or take more devices that share rows out (mesh.sequence=2), fewer frames in a row (data.frames_per_row), or a "
        "larger pruning.fraction, which change what is trained"
    )
    if fitting:
        return [*fitting[:3], last]
    fixed = memory.parameters + memory.optimizer
    if fixed > have:
        factor = 2 ** math.ceil(math.log2(fixed / (0.8 * have)))
        return [f"parameters and moments alone take {fixed / GIB:.1f} GiB: take {factor} x as many devices as fsdp"]
    together = " and ".join(dict.fromkeys(text for text, _ in changes))
    return [f"no single change is enough; set together {together}" if together else "take more devices", last]


def _changes(setting: Setting, memory: Memory) -> Iterator[tuple[str, int]]:
    """(change, peak after it in bytes) of each that can be made."""
    bucket, mesh = setting.bucket, setting.mesh
    policy = bucket.model.remat
    for lighter in _LIGHTER[_LIGHTER.index(policy) + 1 :]:
        spared = max(memory.activations - setting.activations(lighter), 0)
        yield f"model.remat={lighter}", memory.peak - spared
    if mesh["data"] > 1:
        saved = (memory.parameters + memory.optimizer) * (1 - 1 / mesh["data"])
        fsdp = mesh["data"] * mesh["fsdp"]
        yield f"mesh.data=1 and mesh.fsdp={fsdp}", int(memory.peak - saved)
    yield from _micro_batches(bucket, mesh, memory)


def _micro_batches(bucket: RunConfig, mesh: Mapping[str, int], memory: Memory) -> Iterator[tuple[str, int]]:
    """The work of rows shrinks with their number; sums of gradients stay through all micro-batches."""
    rows, shards, now = bucket.data.rows, mesh["data"] * mesh["fsdp"], bucket.loss.accumulate
    sums = memory.parameters if now == 1 else 0
    parts = 2
    while rows % (now * parts * shards) == 0:
        after = memory.peak - (memory.activations + memory.temporaries) * (1 - 1 / parts) + sums
        yield f"loss.accumulate={now * parts}", int(after)
        parts *= 2
