"""The text of a compiled program (`compiled.as_text()`) as computations and instructions, and how often each runs."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s*(ROOT )?(%[\w.\-]+) = (\(.*?\)(?= [a-z])|\S+) ([a-z][\w\-]*)\((.*)")
_HEAD = re.compile(r"(ENTRY )?(%[\w.\-]+) \(.*\) -> .* \{$")
_NAMES = re.compile(r"%[\w.\-]+")
_CALLS = re.compile(r"\b(?:calls|body|true_computation|false_computation)=(%[\w.\-]+)")
_APPLY = re.compile(r"\bto_apply=(%[\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_RUNS_APPLIED = ("call", "call-start", "async-start")


@dataclass(frozen=True)
class Array:
    """One array of a shape. on_chip: it lies in the core's own memory."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of a layout."""
        return self.size * width(self.dtype)


def width(dtype: str) -> int:
    """Bytes of a number, of those below a byte one; 0 of what is no number, such as a token."""
    if dtype == "pred":
        return 1
    bits = re.search(r"\d+", dtype)
    return int(np.ceil(int(bits[0]) / 8)) if bits else 0


def arrays(shape: str) -> list[Array]:
    """Of a shape, such as "(f32[2,3]{1,0:T(8,128)S(1)}, s32[])"."""
    return [
        Array(kind, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in layout)
        for kind, sizes, layout in _ARRAY.findall(shape)
    ]


@dataclass(frozen=True)
class Instruction:
    """One line. kind: "fusion", "while" and the like. rest: what follows its opening parenthesis."""

    name: str
    shape: str
    kind: str
    rest: str

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(_NAMES.findall(self.rest.split("), ")[0]))

    @property
    def results(self) -> list[Array]:
        """What it makes."""
        return arrays(self.shape)

    @cached_property
    def op_name(self) -> str:
        """Where in the Python program it comes from; "" where the compiler made it up."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self) -> list[str]:
        """Computations that run as parts of the program: not the sums and comparisons of reductions and sorts."""
        found = _CALLS.findall(self.rest)
        if self.kind in _RUNS_APPLIED:
            found += _APPLY.findall(self.rest)
        for names in _BRANCHES.findall(self.rest):
            found += _NAMES.findall(names)
        return found


@dataclass
class Computation:
    """instructions in their order, by name; the last one said to be ROOT is its result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def parameters(self) -> dict[int, str]:
        """{number: name}."""
        found = [one for one in self.instructions.values() if one.kind == "parameter"]
        return {int(one.rest.partition(")")[0]): one.name for one in found}


@dataclass(frozen=True)
class Program:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str

    def runs(self) -> Iterator[tuple[Computation, int, bool]]:
        """(computation, how often a run of the program runs it, whether that is known to be so), parts of fusions too.

        A loop whose length the text does not say counts once.
        """
        yield from self._runs(self.entry, 1, True)

    def _runs(self, name: str, times: int, known: bool) -> Iterator[tuple[Computation, int, bool]]:
        computation = self.computations[name]
        yield computation, times, known
        for one in computation.instructions.values():
            trips = self.trips(one, computation) if one.kind == "while" else 1
            for called in one.called():
                yield from self._runs(called, times * (trips or 1), known and trips is not None)

    def trips(self, loop: Instruction, within: Computation) -> int | None:
        """How often the body of a `while` runs, None where only the data says it.

        Read are the compiler's own note, and loops as JAX makes them: a counter from 0 by 1 up to a bound.
        """
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if noted:
            return int(noted[1])
        found = re.search(r"condition=(%[\w.\-]+)", loop.rest)
        condition = self.computations[found[1]] if found else None
        test = condition.instructions.get(condition.root) if condition else None
        if condition is None or test is None or test.kind != "compare" or "direction=LT" not in test.rest:
            return None
        bound = condition.instructions[test.operands[1]]
        if bound.kind == "get-tuple-element":
            carry = within.instructions[loop.operands[0]]
            index = re.search(r"index=(\d+)", bound.rest)
            if carry.kind != "tuple" or index is None:
                return None
            bound = within.instructions[carry.operands[int(index[1])]]
        value = re.match(r"\d+", bound.rest) if bound.kind == "constant" else None
        return int(value[0]) if value else None


def read_program(text: str) -> Program:
    """The program of `text`. Raises ValueError where it is not that of a compiled program."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations[head[2]] = Computation(head[2])
            entry = head[2] if head[1] else entry
            continue
        found = _LINE.match(line) if current else None
        if found and current:
            current.instructions[found[2]] = Instruction(found[2], found[3], found[4], found[5])
            current.root = found[2] if found[1] else current.root
    if not entry:
        raise ValueError("the text has no ENTRY computation: it is not that of a compiled program")
    return Program(computations, entry)
