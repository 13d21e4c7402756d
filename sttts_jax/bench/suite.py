"""`bench suite`: everything that is measured on an accelerator, in one run with a budget of seconds.

Parts run in the order of their weight, and the file is written after each, so that a run that is cut keeps what it has.
A part that the budget or the device has no room for is listed with the reason.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import jax

from sttts_jax.bench.pruning import Row
from sttts_jax.bench.record import device_peak_gib, place, versions
from sttts_jax.bench.suite_parts import Part, Scene, parts_of, scene
from sttts_jax.bench.suite_targets import targets
from sttts_jax.bench.timing import matmul_ceiling
from sttts_jax.paths import PathLike, write_json

Say = Callable[[str], None]
Clock = Callable[[], float]

REACHED = 0.35  # share of the ceiling that estimates expect a program to reach
ON_CPU = 0.1  # the same of tiny shapes on a CPU


@dataclass
class Record:
    """What was measured so far."""

    head: dict[str, Any]
    said: list[str] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    named: list[tuple[str, Row]] = field(default_factory=list)
    unpruned: list[tuple[str, Row]] = field(default_factory=list)
    partial: set[str] = field(default_factory=set)  # parts that ran less of the model than was planned

    @property
    def rows(self) -> list[Row]:
        """Of the pruned variants."""
        return [row for _, row in self.named]

    @property
    def baselines(self) -> list[Row]:
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
    list_parts: Callable[[Scene, Sequence[Fraction]], Sequence[Part]] = parts_of,
) -> Record:
    """Runs what the budget holds and writes `path` after every part; `fractions` in the order of their weight."""
    begun, here = now(), scene()
    for line in here.said:
        say(line)
    ceiling = matmul_ceiling(here.dtype, 2048 if here.cpu else 8192)
    speed = ceiling * (ON_CPU if here.cpu else REACHED)
    record = Record(_head(here, fractions, budget_s, ceiling, command), list(here.said))
    compile_s: dict[str, float] = {}  # of a program, by kind of part: seen where it can be, else a guess
    for part in list_parts(here, fractions):
        started = now()
        left = budget_s - (started - begun)
        chosen = _choose(record, part, left, compile_s.get(part.kind, part.compile_s), speed)
        if chosen:
            say(f"{part.name}: {_ks(chosen)}")
            rows = _measured(record, part, chosen, ceiling, say)
            if not rows and part.smaller is not None:
                part = part.smaller()
                gc.collect()  # what the failed part held
                record.partial.add(part.name)
                say(f"{part.name}: {_ks(chosen)}")
                rows = _measured(record, part, chosen, ceiling, say)
            compile_s[part.kind] = max((row.compile_s for row in rows), default=part.compile_s)
            if rows:
                held = {"seconds": now() - started, "device_peak_gib": device_peak_gib()}
                record.parts.append({"name": part.name, **held, **part.settings})
        record.head["seconds"] = now() - begun
        if path:
            write_json(path, record.as_json())
    return record


def _head(here: Scene, fractions: Sequence[Fraction], budget_s: float, ceiling: float, command: str) -> dict[str, Any]:
    return {
        **place(command),
        "dtype": jax.numpy.dtype(here.dtype).name,
        "preset": here.preset,
        "whole": here.whole,
        "sizes": dataclasses.asdict(here.trained),
        "k": [float(k) for k in fractions],
        "budget_s": budget_s,
        "matmul_flops_per_s": ceiling,
        **versions(),
    }


def _choose(record: Record, part: Part, left: float, compile_s: float, speed: float) -> list[Fraction]:
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


def _measured(record: Record, part: Part, fractions: Sequence[Fraction], ceiling: float, say: Say) -> Sequence[Row]:
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
