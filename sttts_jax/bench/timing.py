"""Compile, then time in turns: what is compared runs within the same seconds, and only ratios are reported."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GIB = 2**30


@dataclass(frozen=True)
class Compiled:
    """One executable: seconds from tracing to the end of compilation, and GiB of temporary memory.

    Benches ask for no compilation cache; with JAX_COMPILATION_CACHE_DIR set, the seconds are those of reading from it.
    """

    call: Callable[..., Any]
    compile_s: float
    peak_gib: float


class Program:
    """A function compiled ahead of time, once for each signature of arguments (structure, shapes, dtypes) it meets."""

    def __init__(self, function: Callable[..., Any]):
        self._jit = jax.jit(function)
        self._built: dict[Any, Compiled] = {}

    @property
    def compilations(self) -> int:
        """Signatures met so far."""
        return len(self._built)

    def compiled(self, *args: Any) -> Compiled:
        """The executable for these arguments, compiled on first sight of their signature."""
        leaves, tree = jax.tree.flatten(args)
        key = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._built:
            before = time.perf_counter()
            call = self._jit.lower(*args).compile()
            seconds = time.perf_counter() - before
            memory = call.memory_analysis()
            peak = 0.0 if memory is None else memory.temp_size_in_bytes / GIB
            self._built[key] = Compiled(call, seconds, peak)
        return self._built[key]


@dataclass(frozen=True)
class Trial:
    """An executable with the arguments of one variant."""

    compiled: Compiled
    args: tuple[Any, ...]

    def seconds(self) -> float:
        """One run, until its results are there."""
        before = time.perf_counter()
        jax.block_until_ready(self.compiled.call(*self.args))
        return time.perf_counter() - before


@dataclass(frozen=True)
class Group:
    """Variants against one baseline: they take turns right after it."""

    baseline: Trial
    variants: Sequence[Trial]


def interleave(groups: Sequence[Group], rounds: int, say: Callable[[str], None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(baseline seconds [rounds], variants' seconds [variants, rounds]) of every group.

    A round visits every group: its baseline, then its variants, which begin with another one each round. One round
    before the first warms up and is not counted.
    """
    base = np.zeros((len(groups), rounds))
    times = [np.zeros((len(group.variants), rounds)) for group in groups]
    for number in range(-1, rounds):
        begun = time.perf_counter()
        measured = [_one_round(group, number) for group in groups]
        if number < 0:
            say(f"a round takes about {time.perf_counter() - begun:.1f} s; {rounds} to go")
            continue
        for i, (seconds, turns) in enumerate(measured):
            base[i, number], times[i][:, number] = seconds, turns
    return list(zip(base, times, strict=True))


def _one_round(group: Group, number: int) -> tuple[float, list[float]]:
    """Seconds of the baseline and of the variants, in their order; they ran from variant `number` on."""
    seconds, count = group.baseline.seconds(), len(group.variants)
    turns = {(number + j) % count: group.variants[(number + j) % count].seconds() for j in range(count)}
    return seconds, [turns[j] for j in range(count)]


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """(median, first quartile, third quartile)."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)


def matmul_ceiling(dtype: Any) -> float:
    """FLOP/s of the best of 5 products of two square matrices: what the device reaches where nothing else is.

    They have enough rows to fill the device: 8192 on an accelerator, 2048 on a CPU.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    compiled = Program(lambda a, b: jnp.matmul(a, b)).compiled(x, x)
    trial = Trial(compiled, (x, x))
    trial.seconds()
    return 2 * size**3 / min(trial.seconds() for _ in range(5))
