"""`bench infer`: prefill, time to first token and decoding, pruned against unpruned, also at another frame count."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.bench.bound import decode_bytes, decode_flops
from sttts_jax.bench.compare import ModelRow, Say, Variant, WholeProgram, compare
from sttts_jax.bench.distributions import Scores
from sttts_jax.bench.record import BenchResult
from sttts_jax.bench.settings import Settings
from sttts_jax.bench.timing import Compiled, Trial, matmul_ceiling
from sttts_jax.bench.workload import UNPRUNED, Workload
from sttts_jax.infer.decode import DecodeState, begin, go_on
from sttts_jax.models.vlm import Vlm
from sttts_jax.train.state import init_params

WHATS = ("prefill", "ttft", "decode")


@dataclass(frozen=True)
class InferPlan:
    """What to compare: `base` unpruned against `load` at every combination of the lists.

    `whats` are of WHATS; `tokens` new ones a row; `scores` gives [B, F, C] of `load` by distribution.
    """

    base: Workload
    load: Workload
    fractions: Sequence[Fraction]
    packings: Sequence[str]
    whats: Sequence[str]
    tokens: int
    scores: Scores
    rounds: int


@dataclass(frozen=True)
class FirstToken(Trial):
    """From a batch on the host to the first tokens on the host: `args` are the parameters and NumPy arrays."""

    def seconds(self) -> float:
        params, batch = self.args
        before = time.perf_counter()
        np.asarray(self.compiled.call(params, jax.device_put(batch)).token)
        return time.perf_counter() - before


@dataclass(frozen=True)
class PerToken(Trial):
    """Seconds of one of the `tokens` steps of a run."""

    tokens: int

    def seconds(self) -> float:
        return super().seconds() / self.tokens


@dataclass(frozen=True)
class _Ready:
    """One variant with its inputs. `first` gives the DecodeState of a batch."""

    load: Workload
    fraction: Fraction
    distribution: str
    packing: str
    params: Any
    batch: dict[str, np.ndarray]
    first: WholeProgram
    later: WholeProgram
    counts: np.ndarray | None


def run(
    settings: Settings,
    command: str,
    say: Say,
    *,
    baseline_frames: Sequence[int],
    text: int,
    whats: Sequence[str],
    tokens: int,
    vit: Mapping[str, int],
    llm: Mapping[str, int],
) -> BenchResult:
    """The whole measurement, a comparison for every frame count with the unpruned one of `baseline_frames`.

    `vit`, `llm`: sizes in the place of the preset's. Raises ValueError with one sentence before anything is compiled.
    """
    vlm, reduced = settings.model(vit, llm, say)
    plans = []
    for frames, other in zip(settings.frames, baseline_frames, strict=True):
        load, unpruned = (settings.load(vlm, n, 1, text, "none") for n in (frames, other))
        draws = settings.draws(frames, vlm.vit.cell_grid.shape)
        shared = settings.fractions, settings.packings, whats, tokens, draws, settings.rounds
        plans.append(InferPlan(unpruned, load, *shared))
    load = plans[0].load
    ceiling = matmul_ceiling(load.dtype)
    found = [measure(plan, ceiling, say) for plan in plans]
    head = settings.head(vlm, load, reduced, ceiling, command)
    return BenchResult.of(f"inference of {settings.preset}, {load.widths}", head, found)


def measure(plan: InferPlan, ceiling: float, say: Say) -> tuple[list[ModelRow], list[ModelRow]]:
    """(rows of the pruned variants, one row of the baseline for each of `whats`)."""
    params = model_params(plan.load)
    base = _ready(plan, plan.base, params, UNPRUNED, "none", {"any": None})[0]
    groups = [
        [
            ready
            for packing in plan.packings
            for ready in _ready(plan, plan.load, params, fraction, packing, plan.scores(fraction))
        ]
        for fraction in plan.fractions
    ]
    rows, baselines = [], []
    for what in plan.whats:
        make = _MAKERS[what]
        found, baseline = compare(
            what,
            "forward",
            make(base, plan.tokens),
            [[make(ready, plan.tokens) for ready in group] for group in groups],
            plan.rounds,
            ceiling,
            say,
        )
        rows += found
        baselines.append(baseline)
    return rows, baselines


def model_params(load: Workload) -> Any:
    """Weights in the compute dtype, as they are served, of a model with a scorer."""
    some = Fraction(1, 2)
    model = load.model(some, "staircase")

    def make(key: jax.Array) -> Any:
        params = nn.unbox(init_params(model, load.shape(some), key))
        return jax.tree.map(lambda x: x.astype(load.dtype), params)

    return jax.jit(make)(jax.random.key(load.seed))


def _ready(plan: InferPlan, load: Workload, params: Any, fraction: Fraction, packing: str, scores: Any) -> list[_Ready]:
    """One for each distribution, all with the same two programs."""
    model = load.model(fraction, packing)
    first = WholeProgram(_prefill(model, load.shape(fraction).length + plan.tokens))
    later = WholeProgram(_decode(model, plan.tokens))
    arrays = load.arrays(fraction)
    if fraction == UNPRUNED:
        params = {**params, "vit": {name: leaf for name, leaf in params["vit"].items() if name != "scorer"}}
    variants = []
    for name, value in scores.items():
        batch, counts = arrays, None
        if value is not None:
            batch, counts = {**arrays, "scores": np.asarray(value)}, load.counts(value, fraction)
        variants.append(_Ready(load, fraction, name, packing, params, batch, first, later, counts))
    return variants


def _prefill(model: Vlm, slots: int) -> Callable[..., Any]:
    def prefill(params: Any, batch: Any) -> DecodeState:
        logits, cache, position, _ = model.apply({"params": params}, batch, slots, method="prefill")
        return begin(logits, position, cache, ())

    return prefill


def _decode(model: Vlm, count: int) -> Callable[..., Any]:
    """`count` greedy tokens, one after the other."""

    def decode(params: Any, state: DecodeState) -> jax.Array:
        def step(state: DecodeState, _: None) -> tuple[DecodeState, jax.Array]:
            state = go_on(model, {"params": params}, state, ())
            return state, state.token

        return jax.lax.scan(step, state, None, length=count)[1]

    return decode


def _prefilled(ready: _Ready, tokens: int) -> Variant:
    args = ready.params, jax.device_put(ready.batch)
    return _first(ready, lambda built: Trial(built, args), args)


def _first_token(ready: _Ready, tokens: int) -> Variant:
    args = ready.params, ready.batch
    return _first(ready, lambda built: FirstToken(built, args), args)


def _first(ready: _Ready, trial: Callable[[Compiled], Trial], args: Any) -> Variant:
    parts = ready.load.flops(ready.fraction, ready.counts, logits=1)
    cost = sum(row.total for row in parts)
    return _variant(ready, ready.first, trial(ready.first.compiled(*args)), cost, cost)


def _decoded(ready: _Ready, tokens: int) -> Variant:
    load = ready.load
    args = ready.params, jax.device_put(ready.batch)
    state = ready.first.compiled(*args).call(*args)
    context = load.shape(ready.fraction).length + (tokens + 1) / 2  # on average over the steps
    trial = PerToken(ready.later.compiled(ready.params, state), (ready.params, state), tokens)
    cost = decode_bytes(load.vlm.llm, load.batch, context, jnp.dtype(load.dtype).itemsize)
    return _variant(ready, ready.later, trial, decode_flops(load.vlm.llm, load.batch, context), cost)


def _variant(ready: _Ready, program: WholeProgram, trial: Trial, flops: float, cost: float) -> Variant:
    count = sum(leaf.size for leaf in jax.tree.leaves(ready.params))
    return Variant(ready.load, ready.fraction, ready.distribution, ready.packing, program, trial, flops, count, cost)


_MAKERS = {"prefill": _prefilled, "ttft": _first_token, "decode": _decoded}
