"""From timed variants to rows of the result, for whole models: each against one unpruned baseline, in turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from sttts_jax.bench.speedup import SpeedupRow, measured
from sttts_jax.bench.timing import GIB, Compiled, Group, Program, Trial, interleave
from sttts_jax.bench.workload import Workload

Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelRow(SpeedupRow):
    """A line of `bench train` or `bench infer`: the names of `bench pruning`, and what a row of the model held.

    what              train, prefill, ttft (time to first token: from a batch on the host to tokens on the host), or
                      decode (seconds of one more token in every row)
    bound             ratio of the FLOPs; of decode, which waits for memory, of the bytes it has to read
    peak_gib          arguments, results and temporary memory together, as the compiler plans them
    baseline_frames   of the unpruned model that it is compared with
    batch, videos     rows, and samples in each
    text              tokens of a sample that are not cells
    length            S, tokens of a row after pruning
    parameters        of the model
    """

    baseline_frames: int
    batch: int
    videos: int
    text: int
    length: int
    parameters: int


@dataclass(frozen=True)
class Variant:
    """What takes its turn. `cost` is what the bound compares, by default the FLOPs."""

    load: Workload
    fraction: Fraction
    distribution: str
    packing: str
    program: Program
    trial: Trial
    flops: float
    parameters: int
    cost: float


class WholeProgram(Program):
    """A program whose first `donated` arguments may be overwritten; its peak counts arguments and results as well."""

    def __init__(self, function: Callable[..., Any], donated: int = 0):
        super().__init__(function)
        self._jit = jax.jit(function, donate_argnums=tuple(range(donated)))

    def compiled(self, *args: Any) -> Compiled:
        built = super().compiled(*args)
        memory = built.call.memory_analysis()  # type: ignore[attr-defined]
        if memory is None:
            return built
        sizes = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        return replace(built, peak_gib=(sizes - memory.alias_size_in_bytes) / GIB)


def compare(
    what: str,
    pass_: str,
    base: Variant,
    groups: Sequence[Sequence[Variant]],
    rounds: int,
    ceiling: float,
    say: Say,
) -> tuple[list[ModelRow], ModelRow]:
    """(rows of the variants, row of the baseline). A round visits every group: the baseline, then its variants."""
    variants = [variant for group in groups for variant in group]
    programs = {id(v.program): v.program for v in (base, *variants)}.values()
    say(f"{what}: {sum(p.compilations for p in programs)} programs compiled")
    times = interleave([Group(base.trial, [v.trial for v in group]) for group in groups], rounds, say)

    def row(variant: Variant, seconds: np.ndarray, ratios: np.ndarray) -> ModelRow:
        load, bound = variant.load, base.cost / variant.cost
        return ModelRow(
            what=what,
            k=float(variant.fraction),
            frames=load.frames,
            distribution=variant.distribution,
            packing=variant.packing,
            pass_=pass_,
            compilations=variant.program.compilations,
            **measured(variant.trial, base.trial, seconds, ratios, bound, variant.flops, ceiling),
            baseline_frames=base.load.frames,
            batch=load.batch,
            videos=load.videos,
            text=load.text,
            length=load.shape(variant.fraction).length,
            parameters=variant.parameters,
        )

    rows = [
        row(variant, seconds, baseline / seconds)
        for group, (baseline, table) in zip(groups, times, strict=True)
        for variant, seconds in zip(group, table, strict=True)
    ]
    return rows, row(base, np.concatenate([seconds for seconds, _ in times]), np.ones(1))
