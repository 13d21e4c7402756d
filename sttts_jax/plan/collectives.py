"""Every collective of a compiled step: what it carries, along which axes of the mesh, and how many bytes.

parameter    gathers parameters, or copies them where they are needed
gradient     sums what every row adds to a gradient, or moves such a sum
scalar       sums or compares single numbers: losses, metrics, norms
lookup       exchanges rows of a table of embeddings that is split by width
tensor       activations, where heads and widths are split (the mesh axis `tensor`)
sequence     activations, where tokens and frames are split (the mesh axis `sequence`)
activation   anything else: rows travel that could have stayed
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sttts_jax.mesh import BATCH_AXES
from sttts_jax.plan.flow import BATCH, COLLECTIVES, PARAMS, SUMMED, SUMS, Flow, base_kind
from sttts_jax.plan.groups import crossed_axes, replica_groups
from sttts_jax.plan.hlo import Array, Computation, Instruction, Program

ACTIVATION = "activation"
_ROW_AXES = {*BATCH_AXES, "sequence"}  # devices along these hold different rows, or parts of rows
_FEW = 64  # numbers: a histogram of scores
_LOOKUP = "llm.embed"
_SCATTERS = "%all-reduce-scatter"  # how the TPU compiler calls the fusion of a sum and a slice


@dataclass(frozen=True)
class Collective:
    """One array of one collective.

    kind      "all-gather" and the like
    carries   one of the classes above
    axes      of the mesh
    members   devices of a group
    dtype, dims     of what a device has afterwards, of a sum and a reduce-scatter before
    times     that a step runs it; exact: whether that is known
    place     where in the Python program, "" where the compiler does not say
    """

    kind: str
    carries: str
    axes: tuple[str, ...]
    members: int
    dtype: str
    dims: tuple[int, ...]
    times: int
    exact: bool
    place: str

    @property
    def bytes(self) -> int:
        """Of `dims` on one device, over all times."""
        return Array(self.dtype, self.dims).bytes * self.times

    @property
    def moved(self) -> float:
        """Bytes that a device sends, over all times, where groups are rings."""
        share = (self.members - 1) / self.members
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def find_collectives(program: Program, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All of a program whose arguments are called state and batch, for a mesh of this shape."""
    devices = math.prod(mesh_shape.values())
    known: dict[str, tuple[tuple[str, ...], int]] = {}

    def crossing(one: Instruction) -> tuple[tuple[str, ...], int]:
        if one.name not in known:
            groups = replica_groups(one.rest, devices)
            known[one.name] = ((), 1) if groups is None else (crossed_axes(groups, mesh_shape), groups.shape[1])
        return known[one.name]

    flow = Flow(program, lambda one: bool(set(crossing(one)[0]) & _ROW_AXES))
    found: list[Collective] = []
    for computation, times, exact in program.runs():
        instructions = [one for one in computation.instructions.values() if base_kind(one.kind) in COLLECTIVES]
        for one in instructions:
            found += _of_instruction(one, computation, times, exact, flow, *crossing(one))
    return [one for one in found if one.members > 1]


def _of_instruction(
    one: Instruction,
    computation: Computation,
    times: int,
    exact: bool,
    flow: Flow,
    axes: tuple[str, ...],
    members: int,
) -> Iterable[Collective]:
    kind = base_kind(one.kind)
    sources = flow.sources.get(one.name, [])
    sums = kind in SUMS
    scatters = computation.name.startswith(_SCATTERS)
    sizes = (
        [array for name in one.operands for array in _shape_of(computation, name)]
        if sums
        else _results(one, len(one.operands))
    )
    for array, source in zip(sizes, sources, strict=True):
        carries = _carries(source, array, sums, axes, one.op_name)
        name = "reduce-scatter" if scatters and kind == "all-reduce" else kind
        yield Collective(name, carries, axes, members, array.dtype, array.dims, times, exact, one.op_name)


def _shape_of(computation: Computation, name: str) -> list[Array]:
    return computation.instructions[name].results


def _results(one: Instruction, operands: int) -> list[Array]:
    """Of asynchronous forms (operands, results, ..): the results."""
    found = one.results
    return found[operands : 2 * operands] if one.kind.endswith("-start") else found[:operands]


def _carries(sources: frozenset[str], array: Array, sums: bool, axes: tuple[str, ...], place: str) -> str:
    if sources == {PARAMS}:
        return "parameter"
    if sums and array.size <= _FEW and len(array.dims) <= 1:
        return "scalar"
    if BATCH not in sources and SUMMED in sources:
        return "gradient"
    if BATCH in sources and sums and set(axes) & _ROW_AXES:
        return "gradient"
    if _LOOKUP in place:
        return "lookup"
    for axis in ("tensor", "sequence"):
        if axis in axes and not set(axes) & set(BATCH_AXES):
            return axis
    return ACTIVATION


@dataclass(frozen=True)
class Total:
    """All collectives of one kind that carry the same along the same axes. bytes and moved: of a device, a step."""

    kind: str
    carries: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    moved: float

    def as_json(self) -> dict[str, Any]:
        """As it stands in files."""
        return {**asdict(self), "axes": list(self.axes), "moved": round(self.moved)}


def totals(found: Iterable[Collective]) -> list[Total]:
    """One entry for each kind, class and axes, the most bytes first."""
    sums: dict[tuple[str, str, tuple[str, ...]], tuple[int, int, float]] = {}
    for one in found:
        key = one.kind, one.carries, one.axes
        count, size, moved = sums.get(key, (0, 0, 0.0))
        sums[key] = count + one.times, size + one.bytes, moved + one.moved
    entries = [Total(*key, *values) for key, values in sums.items()]
    return sorted(entries, key=lambda entry: -entry.bytes)
