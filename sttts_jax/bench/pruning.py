"""`bench pruning`: how much faster pruned shapes are than unpruned ones, and what share of their bound that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sttts_jax.bench.bound import pass_flops
from sttts_jax.bench.distributions import Scores
from sttts_jax.bench.record import BenchResult
from sttts_jax.bench.scopes import SCOPE_CLASSES, BenchShapes, Scope
from sttts_jax.bench.settings import Settings
from sttts_jax.bench.sizes import bench_vit
from sttts_jax.bench.speedup import SpeedupRow, measured
from sttts_jax.bench.timing import Group, Program, Trial, interleave, matmul_ceiling
from sttts_jax.models.config import VitConfig
from sttts_jax.ops.remat import remat_policy

Say = Callable[[str], None]


@dataclass(frozen=True)
class PruningPlan:
    """What to compare: shapes, and every combination of the lists. `scores` gives [B, F, C] by name of distribution."""

    scope: str
    shapes: BenchShapes
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


def run(
    settings: Settings,
    command: str,
    say: Say,
    *,
    scope: str,
    passes: Sequence[str],
    remat: str | None,
    sizes: Mapping[str, int],
) -> BenchResult:
    """The whole measurement, a comparison for every frame count; `sizes` of the ViT in the place of the preset's.

    Raises ValueError with one sentence before anything is compiled.
    """
    vit, reduced = bench_vit(settings.preset, reduce=settings.reduce, **sizes)
    if reduced:
        width = f"a quarter of its width ({vit.width})"
        say(f"no accelerator: {settings.preset} runs at {width}; --full_width runs it whole")
    plans = _plans(settings, vit, scope, passes, remat)
    shapes = plans[0].shapes
    ceiling = matmul_ceiling(shapes.dtype)
    found = [measure(plan, ceiling, say) for plan in plans]
    head = settings.head(vit, shapes, reduced, ceiling, command)
    title = f"{scope} of {settings.preset}, width {vit.width}"
    return BenchResult.of(title, head, found)


def _plans(
    settings: Settings, vit: VitConfig, scope: str, passes: Sequence[str], remat: str | None
) -> list[PruningPlan]:
    if scope != "layer" and vit.layers < vit.prune_after + 3:
        raise ValueError(
            f"{settings.preset} has no block after the drop; use --scope layer or a preset with more blocks"
        )
    remat = remat or ("none" if scope == "layer" else "full")
    remat_policy(remat)
    if scope == "layer" and remat != "none":
        raise ValueError(f"--remat {remat} has no effect on one block; leave it out, or use --scope tail or tower")
    kernels = settings.kernels(vit.patches)
    plans = []
    for frames in settings.frames:
        shapes = BenchShapes(vit, frames, settings.batch, settings.compute_dtype, remat, settings.seed, kernels)
        draws = settings.draws(frames, vit.cell_grid.shape)
        plans.append(PruningPlan(scope, shapes, settings.fractions, settings.packings, passes, draws, settings.rounds))
    return plans


def measure(plan: PruningPlan, ceiling: float, say: Say) -> tuple[list[SpeedupRow], list[SpeedupRow]]:
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


def _measure_pass(
    plan: PruningPlan, scope: Scope, name: str, ceiling: float, say: Say
) -> tuple[list[SpeedupRow], SpeedupRow]:
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


def _variants(plan: PruningPlan, scope: Scope, train: bool, fraction: Fraction) -> list[_Variant]:
    variants = []
    scores = plan.scores(fraction)
    for packing in plan.packings:
        program = Program(scope.variant(train, fraction, packing))
        for name, value in scores.items():
            counts = np.asarray(plan.shapes.keep(value, fraction).mask.sum(axis=-1))
            args = scope.arguments(fraction, packing, value)
            variants.append(_Variant(fraction, name, packing, program, Trial(program.compiled(*args), args), counts))
    return variants


@dataclass(frozen=True)
class _RowMaker:
    plan: PruningPlan
    name: str
    base: _Variant
    ceiling: float

    def __call__(self, variant: _Variant, seconds: np.ndarray, ratios: np.ndarray) -> SpeedupRow:
        flops, bound = self._flops(variant), self._flops(self.base) / self._flops(variant)
        return SpeedupRow(
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
