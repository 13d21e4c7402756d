"""`bench train`: the whole training step of the package (loss, gradients, clip, AdamW), pruned against unpruned."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.bench.bound import row_pass_flops
from sttts_jax.bench.compare import ModelRow, Say, Variant, WholeProgram, compare
from sttts_jax.bench.distributions import Scores
from sttts_jax.bench.memory import check_state
from sttts_jax.bench.record import BenchResult
from sttts_jax.bench.settings import Settings
from sttts_jax.bench.timing import Trial, matmul_ceiling
from sttts_jax.bench.workload import UNPRUNED, Workload
from sttts_jax.train.config import LossConfig
from sttts_jax.train.optimizer import Optimizer, OptimizerConfig
from sttts_jax.train.state import TrainState, boxed_state, init_params
from sttts_jax.train.step import train_step

SCORER = "scorer"
TOTAL_STEPS = 1000  # of the schedule, which costs nothing
TURNS = 4  # variants that follow one run of the baseline


@dataclass(frozen=True)
class TrainPlan:
    """What to compare: the rows, and every combination of the lists. `scores` gives [B, F, C] by distribution."""

    load: Workload
    fractions: Sequence[Fraction]
    packings: Sequence[str]
    scores: Scores
    rounds: int


class Carried:
    """One training state, handed from run to run and overwritten by each: two of a large model do not fit a device.

    The unpruned model has no scorer; its runs leave those leaves aside.
    """

    def __init__(self, state: TrainState, without_scorer: Any):
        found, self._whole = jax.tree_util.tree_flatten_with_path(state)
        self._leaves = [leaf for _, leaf in found]
        scorer = [any(getattr(key, "key", None) == SCORER for key in path) for path, _ in found]
        self._rest = [i for i, ours in enumerate(scorer) if not ours]
        self._part = jax.tree.structure(without_scorer)

    def parameters(self, scorer: bool) -> int:
        """How many the model has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.given(scorer).params))

    def given(self, scorer: bool) -> TrainState:
        """The state as a model with or without a scorer takes it."""
        if scorer:
            return jax.tree.unflatten(self._whole, self._leaves)
        return jax.tree.unflatten(self._part, [self._leaves[i] for i in self._rest])

    def keep(self, state: TrainState, scorer: bool) -> None:
        """Takes the state after a step in the place of the one before."""
        leaves = jax.tree.leaves(state)
        for i, leaf in zip(range(len(self._leaves)) if scorer else self._rest, leaves, strict=True):
            self._leaves[i] = leaf


@dataclass(frozen=True)
class StepTrial(Trial):
    """A step on the carried state; `args` is the batch alone."""

    state: Carried
    scorer: bool

    def seconds(self) -> float:
        state = self.state.given(self.scorer)
        before = time.perf_counter()
        new, _ = jax.block_until_ready(self.compiled.call(state, *self.args))
        seconds = time.perf_counter() - before
        self.state.keep(new, self.scorer)
        return seconds


def run(
    settings: Settings,
    command: str,
    say: Say,
    *,
    videos: int,
    text: int,
    remat: str,
    vit: Mapping[str, int],
    llm: Mapping[str, int],
) -> BenchResult:
    """The whole measurement, a comparison for every frame count: rows of `videos` samples with `text` tokens each.

    `vit`, `llm`: sizes in the place of the preset's. Raises ValueError with one sentence before anything is compiled.
    """
    vlm, reduced = settings.model(vit, llm, say)
    plans = []
    for frames in settings.frames:
        load = settings.load(vlm, frames, videos, text, remat)
        draws = settings.draws(frames, vlm.vit.cell_grid.shape, videos)
        plans.append(TrainPlan(load, settings.fractions, settings.packings, draws, settings.rounds))
    load = plans[0].load
    check_state(load)
    ceiling = matmul_ceiling(load.dtype)
    found = [measure(plan, ceiling, say) for plan in plans]
    head = settings.head(vlm, load, reduced, ceiling, command)
    return BenchResult.of(f"training step of {settings.preset}, {load.widths}, remat {load.remat}", head, found)


def measure(plan: TrainPlan, ceiling: float, say: Say) -> tuple[list[ModelRow], list[ModelRow]]:
    """(rows of the pruned variants, the baseline's row). Everything is compiled, then timed in turns."""
    load = plan.load
    state = fresh(load, plan.fractions[0])
    frames = jax.device_put(load.arrays(UNPRUNED)["frames"])  # the same pictures for all
    bench = _Bench(load, state, frames)
    program = bench.program(UNPRUNED, "none")
    base = bench.variant(program, UNPRUNED, "none", "any", None)
    variants = []
    for fraction in plan.fractions:
        scores = plan.scores(fraction)
        for packing in plan.packings:
            program = bench.program(fraction, packing)
            variants += [bench.variant(program, fraction, packing, name, value) for name, value in scores.items()]
    groups = [variants[i : i + TURNS] for i in range(0, len(variants), TURNS)]
    rows, baseline = compare("train", "train", base, groups, plan.rounds, ceiling, say)
    return rows, [baseline]


@dataclass(frozen=True)
class _Bench:
    load: Workload
    state: Carried
    frames: jax.Array

    def program(self, fraction: Fraction, packing: str) -> WholeProgram:
        """The step of one bucket, its state donated."""
        model, (_, optimizer) = self.load.model(fraction, packing), _boxed(self.load, fraction)
        return WholeProgram(functools.partial(train_step, LossConfig(), self.load.seed, model, optimizer), donated=1)

    def variant(
        self, program: WholeProgram, fraction: Fraction, packing: str, name: str, scores: np.ndarray | None
    ) -> Variant:
        load, scorer = self.load, scores is not None
        arrays = load.arrays(fraction)
        batch = {key: self.frames if key == "frames" else jnp.asarray(value) for key, value in arrays.items()}
        counts = None
        if scores is not None:
            batch["scores"], counts = jnp.asarray(scores), load.counts(scores, fraction)
        built = program.compiled(self.state.given(scorer), batch)
        trial = StepTrial(built, (batch,), self.state, scorer)
        frames = load.frames * load.videos
        parts = load.flops(fraction, counts)
        cost = sum(row_pass_flops("train", load.vlm, row, frames, load.remat) for row in parts)
        return Variant(load, fraction, name, packing, program, trial, cost, self.state.parameters(scorer), cost)


def fresh(load: Workload, fraction: Fraction) -> Carried:
    """Weights and moments on the device, float32, for a model that prunes at any fraction and for the unpruned one."""
    model, (_, optimizer) = load.model(fraction, "staircase"), _boxed(load, fraction)

    def make(key: jax.Array) -> TrainState:
        params = nn.unbox(init_params(model, load.shape(fraction), key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, zero, params, optimizer.init(params))

    return Carried(jax.jit(make)(jax.random.key(load.seed)), nn.unbox(_boxed(load, UNPRUNED)[0]))


def _boxed(load: Workload, fraction: Fraction) -> tuple[Any, Optimizer]:
    """(abstract state, optimizer) of a model with or without a scorer."""
    model = load.model(fraction, "staircase")
    return boxed_state(OptimizerConfig(), TOTAL_STEPS, model, load.shape(fraction))
