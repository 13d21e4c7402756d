"""What every collective of a program carries, followed from the program's arguments through loops and fusions.

A value comes from a set of sources: the top names of arguments, such as "state.params" and "batch". A sum over
devices that hold different rows turns what came from the batch into SUMMED: it belongs to no row any more.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from sttts_jax.plan.hlo import Computation, Instruction, Program

BATCH, PARAMS, SUMMED = "batch", "state.params", "summed"
SUMS = ("all-reduce", "reduce-scatter")
COLLECTIVES = (*SUMS, "all-gather", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all")
_PASSED_ON = ("opt-barrier", "optimization-barrier")

Sources = frozenset[str]
Value = Sources | tuple["Value", ...]  # of an array, or of every part of a tuple
NOTHING: Sources = frozenset()


def base_kind(kind: str) -> str:
    """Without the -start of an asynchronous form."""
    return kind.removesuffix("-start")


class Flow:
    """sources     {name of a collective: sources of each array that it is given}

    sums_rows(instruction): whether a sum is over devices that hold different rows.
    """

    def __init__(self, program: Program, sums_rows: Callable[[Instruction], bool]):
        self._program, self._sums_rows = program, sums_rows
        self._known: dict[tuple[str, tuple[Value, ...]], Value] = {}
        self.sources: dict[str, list[Sources]] = {}
        entry = program.computations[program.entry]
        arguments = [_argument(entry.instructions[name]) for _, name in sorted(entry.parameters.items())]
        self._run(program.entry, tuple(arguments))

    def _run(self, name: str, arguments: tuple[Value, ...]) -> Value:
        """The value of a computation. Calls with the same arguments give the same."""
        if (name, arguments) not in self._known:
            self._known[name, arguments] = self._walk(self._program.computations[name], arguments)
        return self._known[name, arguments]

    def _walk(self, computation: Computation, arguments: Sequence[Value]) -> Value:
        places = {name: number for number, name in computation.parameters.items()}
        values: dict[str, Value] = {}
        for name, one in computation.instructions.items():
            if name in places:
                values[name] = arguments[places[name]] if places[name] < len(arguments) else NOTHING
            else:
                values[name] = self._value(one, [values.get(operand, NOTHING) for operand in one.operands], values)
        return values.get(computation.root, NOTHING)

    def _value(self, one: Instruction, given: list[Value], values: Mapping[str, Value]) -> Value:
        kind = base_kind(one.kind)
        if kind in COLLECTIVES:
            return self._collective(one, kind, given)
        if kind == "while":
            return self._loop(one.called()[0], given[0])
        if kind == "conditional":
            results = [self._run(name, (value,)) for name, value in zip(one.called(), given[1:], strict=True)]
            return _joined([*results, flat(given[0])]) if results else NOTHING
        if kind == "tuple":
            return tuple(given)
        if kind == "get-tuple-element" and isinstance(given[0], tuple):
            return given[0][int(one.rest.partition("index=")[2].split(",")[0])]
        if kind in _PASSED_ON or kind.endswith("-done"):
            return given[0] if given else NOTHING
        called = one.called()
        return self._run(called[0], tuple(given)) if called else flat(tuple(given))

    def _loop(self, body: str, carry: Value) -> Value:
        while True:
            after = _joined([carry, self._run(body, (carry,))])
            if after == carry:
                return after
            carry = after

    def _collective(self, one: Instruction, kind: str, given: list[Value]) -> Value:
        seen = [flat(value) for value in given]
        before = self.sources.get(one.name, [NOTHING] * len(seen))
        self.sources[one.name] = [old | new for old, new in zip(before, seen, strict=True)]
        if kind in SUMS and self._sums_rows(one):
            seen = [(value - {BATCH}) | {SUMMED} if BATCH in value else value for value in seen]
        return seen[0] if len(seen) == 1 else tuple(seen)


def flat(value: Value) -> Sources:
    """Sources of everything in it."""
    if isinstance(value, frozenset):
        return value
    return frozenset().union(*map(flat, value)) if value else NOTHING


def _joined(values: Sequence[Value]) -> Value:
    """What holds one of the values, part by part where they are tuples of one length."""
    lengths = {len(value) for value in values if isinstance(value, tuple)}
    if len(lengths) != 1:
        return flat(tuple(values))
    whole = frozenset().union(*(value for value in values if isinstance(value, frozenset)))
    parts = zip(*(value for value in values if isinstance(value, tuple)), strict=True)
    return tuple(_joined([*part, whole]) if whole else _joined(part) for part in parts)


def _argument(parameter: Instruction) -> Value:
    """Its name in the Python program, as far as the first bracket."""
    name = re.match(r"[\w.]+", parameter.op_name)
    return frozenset([name[0] if name else parameter.name])
