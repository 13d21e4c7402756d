"""`bench suite`: everything that is measured on an accelerator, in one run with a budget of seconds.

Parts run in the order of their weight, and the file is written after each, so that a run that is cut keeps what it has.
A part that the budget or the device has no room for is listed with the reason.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax

from sttts_jax.bench import infer, pruning, train
from sttts_jax.bench.bound import row_pass_flops, scope_flops
from sttts_jax.bench.distributions import DISTRIBUTIONS, scores_by_name
from sttts_jax.bench.record import device_peak_gib, place, show, speedup_table, versions, write_plot
from sttts_jax.bench.scopes import BenchShapes
from sttts_jax.bench.sizes import thinned
from sttts_jax.bench.speedup import SpeedupRow
from sttts_jax.bench.targets import targets
from sttts_jax.bench.testbed import Testbed, testbed
from sttts_jax.bench.timing import matmul_ceiling
from sttts_jax.bench.workload import UNPRUNED
from sttts_jax.paths import PathLike, write_json

Say = Callable[[str], None]
Clock = Callable[[], float]

REACHED = 0.35  # share of the ceiling that estimates expect a program to reach
ON_CPU = 0.1  # the same of tiny shapes on a CPU
ROUNDS = {"layer": 9, "train": 5, "prefill": 9}

Measured = tuple[Sequence[SpeedupRow], Sequence[SpeedupRow]]


@dataclass(frozen=True)
class Part:
    """`run` measures some of `fractions`; `smaller` is measured where the device has too little memory after all.

    For estimates: `compile_s` of a program, and two numbers each, at no fraction and for one more: how many `programs`
    there are (starting values are a part of one), and `turn`, the FLOPs of a round.
    """

    name: str
    kind: str
    fractions: Sequence[Fraction]
    run: Callable[[Sequence[Fraction], float, Callable[[str], None]], Measured]
    compile_s: float
    programs: tuple[float, float]
    turn: tuple[float, float]
    rounds: int
    settings: dict[str, Any] = field(default_factory=dict)
    smaller: Callable[[], "Part"] | None = None

    def seconds(self, fractions: Sequence[Fraction], compile_s: float, speed: float) -> float:
        """About how long it takes; `speed` FLOP/s."""
        programs, turn = (first + more * len(fractions) for first, more in (self.programs, self.turn))
        return compile_s * programs + (self.rounds + 1) * turn / speed


def parts_of(bed: Testbed, fractions: Sequence[Fraction]) -> list[Part]:
    """What matters most comes first."""
    short, long = bed.texts
    return [
        _train_part(bed, fractions, short),
        _prefill_part(bed, fractions[:1]),
        _layer_part(bed, fractions),
        _train_part(bed, fractions, long),
    ]


def _train_part(bed: Testbed, fractions: Sequence[Fraction], text: int) -> Part:
    load, rounds = bed.load(bed.frames, 2, text), ROUNDS["train"]
    scores = scores_by_name(("uniform",), 0, load.batch, 2, load.frames, load.vlm.vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        return train.measure(train.TrainPlan(load, chosen, ("staircase",), scores, rounds), ceiling, say)

    step = row_pass_flops("train", load.vlm, load.flops(UNPRUNED, None)[0], 2 * load.frames, load.remat)

    def half() -> Part:
        less = replace(bed, trained=thinned(bed.trained, Fraction(1, 2)))
        vit, llm = less.trained.vit.layers, less.trained.llm.layers
        return replace(
            _train_part(less, fractions, text), name=f"{name}, {vit} ViT and {llm} language model blocks", smaller=None
        )

    name = f"training, {bed.frames} frames x 2, {text} text tokens"
    guess = 8.0 if bed.cpu else 30.0
    settings = {"remat": load.remat, "rounds": rounds}
    return Part(name, "train", fractions, run, guess, (1.4, 1), (step, 0.7 * step), rounds, settings, half)


def _prefill_part(bed: Testbed, fractions: Sequence[Fraction]) -> Part:
    base, load = (bed.load(frames, 1, bed.texts[0], "none") for frames in (bed.frames, 2 * bed.frames))
    rounds = ROUNDS["prefill"]
    scores = scores_by_name(("uniform",), 0, load.batch, 1, load.frames, load.vlm.vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        plan = infer.InferPlan(base, load, chosen, ("staircase",), infer.WHATS, 16, scores, rounds)
        return infer.measure(plan, ceiling, say)

    step = sum(row.total for row in load.flops(UNPRUNED, None, logits=1))
    name = f"inference, {load.frames} frames against {base.frames} unpruned"
    guess = 3.0 if bed.cpu else 15.0
    # Prefill, time to first token, and the decoding of 16 tokens, which costs as much again at most.
    return Part(
        name, "infer", fractions, run, guess, (2.4, 2), (0, 3 * 2 * step), rounds, {"remat": "none", "rounds": rounds}
    )


def _layer_part(bed: Testbed, fractions: Sequence[Fraction]) -> Part:
    vit, rounds = bed.served.vit, ROUNDS["layer"]
    shapes = BenchShapes(vit, bed.frames, 1, bed.dtype, attention=bed.attention)
    passes, cost = ("forward", "train"), scope_flops("layer", vit, None, bed.frames, 1)
    scores = scores_by_name(DISTRIBUTIONS, 0, 1, 1, bed.frames, vit.cells)

    def run(chosen: Sequence[Fraction], ceiling: float, say: Callable[[str], None]) -> Measured:
        plan = pruning.PruningPlan("layer", shapes, chosen, ("staircase",), passes, scores, rounds)
        return pruning.measure(plan, ceiling, say)

    name = f"one ViT block, {bed.frames} frames"
    guess = 1.0 if bed.cpu else 5.0
    settings = {"remat": "none", "rounds": rounds}
    turn = (1 + 3) * (1 + len(DISTRIBUTIONS)) * cost  # forward and training, the baseline and its variants
    return Part(name, "layer", fractions, run, guess, (2, 2), (0, turn), rounds, settings)


@dataclass
class SuiteRecord:
    """What was measured so far."""

    head: dict[str, Any]
    said: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    named: list[tuple[str, SpeedupRow]] = field(default_factory=list)
    unpruned: list[tuple[str, SpeedupRow]] = field(default_factory=list)
    partial: set[str] = field(default_factory=set)  # parts that ran less of the model than was planned

    @property
    def rows(self) -> list[SpeedupRow]:
        """Of the pruned variants."""
        return [row for _, row in self.named]

    @property
    def baselines(self) -> list[SpeedupRow]:
        """Of the unpruned ones."""
        return [row for _, row in self.unpruned]

    def targets(self) -> list[dict[str, Any]]:
        """What was wanted and what came, when the whole model ran."""
        if not self.head["whole"]:
            return []
        rows, baselines = ([row for name, row in x if name not in self.partial] for x in (self.named, self.unpruned))
        return targets(rows, baselines)

    def as_json(self) -> dict[str, Any]:
        """The file: every row names its part."""
        return {
            **self.head,
            "said": self.said,
            "parts": self.parts,
            "skipped": self.skipped,
            "targets": self.targets(),
            "baselines": [{"part": name, **row.as_json()} for name, row in self.unpruned],
            "rows": [{"part": name, **row.as_json()} for name, row in self.named],
        }

    def finish(self, plot: PathLike | None, say: Say) -> None:
        """Draws the plot, if wanted, prints the table, and says what was left out and what was reached."""
        title = f"suite on {self.head['device']}, {self.head['dtype']}"
        if plot and self.rows:
            write_plot(plot, self.rows, title)
        show(title, speedup_table(self.rows, self.baselines))
        for line in self.lines():
            say(line)

    def lines(self) -> list[str]:
        """What was left out, and the targets, one sentence each."""
        lines = [f"left out: {one['part']}, {one['what']}: {one['reason']}" for one in self.skipped]
        for one in self.targets():
            verb = "reached" if one["reached"] else "not reached"
            lines.append(f"{one['what']}: {one['value']:.3g}, wanted {one['wanted']}: {verb}")
        return lines


def run_suite(
    fractions: Sequence[Fraction],
    budget_s: float,
    path: PathLike | None,
    command: str,
    say: Say,
    *,
    now: Clock = time.monotonic,
    list_parts: Callable[[Testbed, Sequence[Fraction]], Sequence[Part]] = parts_of,
) -> SuiteRecord:
    """Runs what the budget holds and writes `path` after every part; `fractions` in the order of their weight."""
    begun, bed = now(), testbed()
    for line in bed.said:
        say(line)
    ceiling = matmul_ceiling(bed.dtype)
    speed = ceiling * (ON_CPU if bed.cpu else REACHED)
    record = SuiteRecord(_head(bed, fractions, budget_s, ceiling, command), list(bed.said))
    compile_s: dict[str, float] = {}  # of a program, by kind of part: seen where it can be, else a guess
    for part in list_parts(bed, fractions):
        started = now()
        left = budget_s - (started - begun)
        chosen = _choose(record, part, left, compile_s.get(part.kind, part.compile_s), speed)
        if chosen:
            part, rows = _run_part(record, part, chosen, ceiling, say)
            compile_s[part.kind] = max((row.compile_s for row in rows), default=part.compile_s)
            held = {"seconds": now() - started, "device_peak_gib": device_peak_gib()}
            record.parts += [{"name": part.name, **held, **part.settings}] if rows else []
        record.head["seconds"] = now() - begun
        if path:
            write_json(path, record.as_json())
    return record


def _run_part(
    record: SuiteRecord, part: Part, chosen: Sequence[Fraction], ceiling: float, say: Say
) -> tuple[Part, Sequence[SpeedupRow]]:
    """(what was run, its rows): the part, or its smaller form where the part does not fit the device."""
    say(f"{part.name}: {_ks(chosen)}")
    rows = _measured(record, part, chosen, ceiling, say)
    if rows or part.smaller is None:
        return part, rows
    part = part.smaller()
    gc.collect()  # what the failed part held
    record.partial.add(part.name)
    say(f"{part.name}: {_ks(chosen)}")
    return part, _measured(record, part, chosen, ceiling, say)


def _head(bed: Testbed, fractions: Sequence[Fraction], budget_s: float, ceiling: float, command: str) -> dict[str, Any]:
    return {
        **place(command),
        "dtype": jax.numpy.dtype(bed.dtype).name,
        "preset": bed.preset,
        "whole": bed.whole,
        "sizes": dataclasses.asdict(bed.trained),
        "k": [float(k) for k in fractions],
        "budget_s": budget_s,
        "matmul_flops_per_s": ceiling,
        **versions(),
    }


def _choose(record: SuiteRecord, part: Part, left: float, compile_s: float, speed: float) -> list[Fraction]:
    """As many of the part's fractions, from the first on, as are done in `left` seconds; the others are skipped."""
    chosen = list(part.fractions)
    while chosen and part.seconds(chosen, compile_s, speed) > left:
        chosen.pop()
    rest = part.fractions[len(chosen) :]
    if rest:
        needed = part.seconds([*chosen, rest[0]], compile_s, speed)
        reason = f"{max(left, 0):.0f} s of the budget are left and it would take about {needed:.0f}"
        record.skipped.append({"part": part.name, "what": _ks(rest), "reason": reason})
    return chosen


def _ks(fractions: Sequence[Fraction]) -> str:
    return "k = " + ", ".join(f"{float(k):g}" for k in fractions)


def _measured(
    record: SuiteRecord, part: Part, fractions: Sequence[Fraction], ceiling: float, say: Say
) -> Sequence[SpeedupRow]:
    """Rows and baselines of a part, kept in the record; one that does not fit the device is a part left out."""
    try:
        rows, baselines = part.run(fractions, ceiling, say)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = "the device has too little memory: " + str(error).splitlines()[0][:200]
        record.skipped.append({"part": part.name, "what": _ks(fractions), "reason": reason})
        return []
    record.named += [(part.name, row) for row in rows]
    record.unpruned += [(part.name, row) for row in baselines]
    return [*rows, *baselines]
