"""How the memory of one device is used, by kind."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import jax

_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_USED = re.compile(rf"[Uu]sed {_SIZE} of {_SIZE}")
_ALLOCATION = re.compile(rf"\({_SIZE}\) exceeds (?:the )?available \w+ \({_SIZE}\)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    parameters, optimizer, batch    arguments of the step
    activations     what the backward pass keeps of the rows
    temporaries     everything else that the step makes: gradients, gathered parameters, work of a block
    program         code and constants
    """

    parameters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def shard_bytes(tree: Any) -> int:
    """Of abstract arrays with shardings, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def split_memory(state: Any, batch: Any, activations: int, peak: int, program: int) -> Memory:
    """`peak` bytes of a device, by kind; state: an abstract TrainState, batch: abstract rows."""
    parameters, optimizer, rows = shard_bytes(state.params), shard_bytes(state.opt), shard_bytes(batch)
    made = max(peak - parameters - optimizer - rows - program, 0)
    activations = min(activations, made)
    return Memory(parameters, optimizer, rows, activations, made - activations, program)


def compiled_peak(stats: Any) -> tuple[int, int]:
    """(bytes of a device, those of them that are the program's), from `compiled.memory_analysis()`."""
    program = stats.generated_code_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + fresh + program, program


def exhausted(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes there are) of what a compiler says that ran out of memory; None of another message."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _USED.search(message) or _ALLOCATION.search(message)
    if found is None:
        return None
    need, unit, have, other = found.groups()
    return int(float(need) * _UNITS[unit]), int(float(have) * _UNITS[other])
