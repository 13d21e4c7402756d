"""`bench pruning`: how much faster pruned shapes are than unpruned ones, and what share of their bound that is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from sttts_jax.bench.bound import pass_flops
from sttts_jax.bench.scopes import SCOPE_CLASSES, Scope, Shapes
from sttts_jax.bench.timing import Group, Program, Trial, interleave, quartiles

Say = Callable[[str], None]
Scores = Callable[[Fraction], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Row:
    """One line of the result. The contract of the JSON file: names stay, more may come.

    what            scope: layer, tail or tower
    k               share of cells removed
    packing         "staircase" or "bins"; "none" in the rows of the unpruned baseline
    pass_           "pass" in the file: forward or train
    speedup         median over rounds of baseline seconds / variant seconds, and its quartiles in `spread`
    bound           ratio of the FLOPs of the same shapes; `share` is speedup / bound
    peak_gib        temporary memory that the compiler plans, GiB; `peak_ratio` against the baseline
    compilations    executables that all distributions of this variant needed together
    seconds         median, and quartiles in `seconds_spread`
    flops           of one run, analytic, without padding; `flops_per_s` is what was achieved of them
    mfu             flops_per_s against the measured ceiling of a matrix product
    """

    what: str
    k: float
    frames: int
    distribution: str
    packing: str
    pass_: str
    speedup: float
    spread: tuple[float, float]
    bound: float
    share: float
    peak_gib: float
    peak_ratio: float
    compilations: int
    compile_s: float
    seconds: float
    seconds_spread: tuple[float, float]
    flops: float
    flops_per_s: float
    mfu: float

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        return {name.rstrip("_"): value for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Plan:
    """What to compare: shapes, and every combination of the lists. `scores` gives [B, F, C] by name of distribution."""

    scope: str
    shapes: Shapes
    fractions: Sequence[Fraction]
    packings: Sequence[str]
    passes: Sequence[str]
    scores: Scores
    rounds: int


@dataclass(frozen=True)
class _Variant:
    fraction: Fraction
    distribution: str
    packing: str
    program: Program
    trial: Trial
    counts: np.ndarray | None


def measure(plan: Plan, ceiling: float, say: Say) -> tuple[list[Row], list[Row]]:
    """(rows of the pruned variants, one row of the baseline for every pass).

    Everything of a pass is compiled, then timed in turns. `ceiling`: FLOP/s of a matrix product, for `mfu`.
    """
    scope = SCOPE_CLASSES[plan.scope](plan.shapes)
    rows, baselines = [], []
    for name in plan.passes:
        pruned, baseline = _measure_pass(plan, scope, name, ceiling, say)
        rows += pruned
        baselines.append(baseline)
    return rows, baselines


def _measure_pass(plan: Plan, scope: Scope, name: str, ceiling: float, say: Say) -> tuple[list[Row], Row]:
    train = name == "train"
    function, args = scope.baseline(train)
    program = Program(function)
    base = _Variant(Fraction(0), "any", "none", program, Trial(program.compiled(*args), args), None)
    groups = [_variants(plan, scope, train, fraction) for fraction in plan.fractions]
    programs = {id(v.program): v.program for group in groups for v in group}
    count = sum(p.compilations for p in programs.values()) + program.compilations
    say(f"{plan.scope}, {plan.shapes.frames} frames, {name}: {count} programs compiled")
    times = interleave([Group(base.trial, [v.trial for v in group]) for group in groups], plan.rounds, say)
    everything = np.concatenate([seconds for seconds, _ in times])
    make = _RowMaker(plan, name, base, ceiling)
    rows = [
        make(variant, seconds, baseline / seconds)
        for group, (baseline, table) in zip(groups, times, strict=True)
        for variant, seconds in zip(group, table, strict=True)
    ]
    return rows, make(base, everything, np.ones(1))


def _variants(plan: Plan, scope: Scope, train: bool, fraction: Fraction) -> list[_Variant]:
    variants = []
    scores = plan.scores(fraction)
    for packing in plan.packings:
        program = Program(scope.variant(train, fraction, packing))
        for name, value in scores.items():
            counts = np.asarray(plan.shapes.keep(value, fraction).mask.sum(axis=-1))
            args = scope.arguments(fraction, packing, value)
            variants.append(_Variant(fraction, name, packing, program, Trial(program.compiled(*args), args), counts))
    return variants


def measured(
    trial: Trial, base: Trial, seconds: np.ndarray, ratios: np.ndarray, bound: float, flops: float, ceiling: float
) -> dict[str, Any]:
    """The fields of a `Row` that come from its times [rounds], their ratios to the baseline's, and the two programs."""
    speedup, *spread = quartiles(ratios)
    middle, *seconds_spread = quartiles(seconds)
    peak, of = trial.compiled.peak_gib, base.compiled.peak_gib
    return {
        "speedup": speedup,
        "spread": tuple(spread),
        "bound": bound,
        "share": speedup / bound,
        "peak_gib": peak,
        "peak_ratio": peak / of if of else 0.0,
        "compile_s": trial.compiled.compile_s,
        "seconds": middle,
        "seconds_spread": tuple(seconds_spread),
        "flops": flops,
        "flops_per_s": flops / middle,
        "mfu": flops / middle / ceiling,
    }


@dataclass(frozen=True)
class _RowMaker:
    plan: Plan
    name: str
    base: _Variant
    ceiling: float

    def __call__(self, variant: _Variant, seconds: np.ndarray, ratios: np.ndarray) -> Row:
        flops, bound = self._flops(variant), self._flops(self.base) / self._flops(variant)
        return Row(
            what=self.plan.scope,
            k=float(variant.fraction),
            frames=self.plan.shapes.frames,
            distribution=variant.distribution,
            packing=variant.packing,
            pass_=self.name,
            compilations=variant.program.compilations,
            **measured(variant.trial, self.base.trial, seconds, ratios, bound, flops, self.ceiling),
        )

    def _flops(self, variant: _Variant) -> float:
        shapes = self.plan.shapes
        return pass_flops(
            self.name, self.plan.scope, shapes.vit, variant.counts, shapes.frames, shapes.batch, shapes.remat
        )
