"""What a compiled program moves between HBM and the core, computes and takes, read from its text."""

import re
from collections.abc import Iterator

import numpy as np

from sttts_jax.plan.hlo import Array, Computation, Instruction, Program, arrays

_COPIES = ("copy-start", "slice-start")
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "while", "conditional", "after-all")
_FREE_CALLS = ('custom_call_target="ConcatBitcast"', 'custom_call_target="AllocateBuffer"')
_CONCAT = _FREE_CALLS[0]  # gives the pieces of a copy one name
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = 2**62  # what the compiler writes where it has no idea
_DOT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GEMM = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')  # how calls of cuBLAS say it
_KERNEL_FLOPS = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')


def hbm_bytes(program: Program) -> int:
    """Bytes that a run reads from HBM or writes to it, loops as often as they turn.

    The compiler's own "bytes accessed" counts arrays that lie in the core's fast memory as well, and loops once. Of a
    kernel, every operand and result counts once; of an array that a fusion slices, or puts a slice into, that slice.
    """
    total = 0
    for computation, times in _scheduled(program):
        total += times * sum(_moved(one, computation, program) for one in computation.instructions.values())
    return total


def compiled_flops(program: Program) -> float:
    """FLOPs of matrix products on a device, and those that kernels say they do, loops as often as they turn."""
    total = 0.0
    for computation, times, _ in program.runs():
        for one in computation.instructions.values():
            total += times * _flops(one, computation)
    return total


def estimated_cycles(program: Program) -> int:
    """The sum of the TPU compiler's own estimates of its instructions; 0 where it gives none. Kernels have none."""
    found = 0
    for computation, times in _scheduled(program):
        cycles = map(_CYCLES.search, (one.rest for one in computation.instructions.values()))
        found += times * sum(int(one[1]) for one in cycles if one and int(one[1]) < _UNKNOWN_CYCLES)
    return found


def kernel_flops(program: Program) -> float:
    """FLOPs that kernels say they do."""
    return sum(
        times * _kernel_flops(one)
        for computation, times, _ in program.runs()
        for one in computation.instructions.values()
        if one.kind == "custom-call"
    )


def free_calls(text: str) -> int:
    """Calls that cost nothing, each of which counts as -1 second, "unknown", in the compiler's estimate of a run."""
    return text.count(_CONCAT)


def _scheduled(program: Program) -> Iterator[tuple[Computation, int]]:
    """Computations whose instructions run one by one, with how often: not the inside of fusions."""
    fused = {
        name
        for computation in program.computations.values()
        for one in computation.instructions.values()
        if one.kind == "fusion"
        for name in one.called()
    }
    return ((computation, times) for computation, times, _ in program.runs() if computation.name not in fused)


def _moved(one: Instruction, computation: Computation, program: Program) -> int:
    if one.kind in _COPIES:
        # (result, source, ..) or ((source), result, ..): one side is HBM, and as much as the smaller moves
        sizes = sorted(array.bytes for array in one.results if array.dims)
        return sizes[-2 if one.kind == "copy-start" else 0]
    if one.kind in _FREE or one.kind.endswith(("-done", "-start")) or any(call in one.rest for call in _FREE_CALLS):
        return 0
    given = [_results(computation, name) for name in one.operands]
    if one.kind == "fusion" and one.called()[0] in program.computations:
        return _fusion_bytes(given, one.results, program.computations[one.called()[0]])
    if one.kind == "dynamic-update-slice":
        return 2 * _hbm(given[1])
    if one.kind in ("dynamic-slice", "slice"):
        return 2 * _hbm(one.results)
    return sum(map(_hbm, given)) + _hbm(one.results)


def _results(computation: Computation, name: str) -> list[Array]:
    found = computation.instructions.get(name)
    return arrays(found.shape) if found else []


def _hbm(found: list[Array]) -> int:
    return sum(array.bytes for array in found if array.dims and not array.on_chip)


def _fusion_bytes(given: list[list[Array]], results: list[Array], inside: Computation) -> int:
    """Operands as far as they are sliced; results, of which those that a slice is put into cost that slice."""
    total = 0
    for number, found in enumerate(given):
        sliced = _sliced(inside, inside.parameters[number]) if number in inside.parameters else None
        total += _hbm(found) if sliced is None or not _hbm(found) else min(sliced, _hbm(found))
    root = inside.instructions.get(inside.root)
    if root is None:
        return total + _hbm(results)
    ends = [inside.instructions[name] for name in root.operands] if root.kind == "tuple" else [root]
    for end, array in zip(ends, results, strict=False):
        update = _update(inside, end)
        total += _hbm([array]) if update is None else min(update, _hbm([array]))
    return total


def _sliced(inside: Computation, name: str) -> int | None:
    """Bytes of the slices that are all that is read of a parameter of a fusion; None where something reads it whole."""
    readers = [one for one in inside.instructions.values() if name in one.operands]
    sizes = [_read_of(inside, one, name) for one in readers]
    return None if None in sizes else sum(size or 0 for size in sizes)


def _read_of(inside: Computation, reader: Instruction, name: str) -> int | None:
    if reader.kind in ("bitcast", "reshape"):
        return _sliced(inside, reader.name)
    if reader.kind == "dynamic-slice":
        return sum(array.bytes for array in reader.results)
    return 0 if reader.kind == "dynamic-update-slice" and reader.operands[0] == name else None


def _update(inside: Computation, end: Instruction) -> int | None:
    """Bytes of the slice that a result is made of, None of another result."""
    while end.kind == "bitcast" and end.operands[0] in inside.instructions:
        end = inside.instructions[end.operands[0]]
    if end.kind != "dynamic-update-slice":
        return None
    return sum(array.bytes for array in _results(inside, end.operands[1]))


def _flops(one: Instruction, computation: Computation) -> float:
    if one.kind == "convolution":
        return _convolution_flops(one, *(_results(computation, name)[0] for name in one.operands[:2]))
    contracted = (_DOT if one.kind == "dot" else _GEMM).search(one.rest)
    if contracted and one.kind in ("dot", "custom-call"):
        left = _results(computation, one.operands[0])[0]
        dims = [left.dims[int(number)] for number in re.findall(r"\d+", contracted[1])]
        return 2.0 * one.results[0].size * float(np.prod(dims))
    return _kernel_flops(one) if one.kind == "custom-call" else 0.0


def _kernel_flops(one: Instruction) -> float:
    found = _KERNEL_FLOPS.search(one.rest)
    return float(found[1]) if found else 0.0


def _convolution_flops(one: Instruction, left: Array, right: Array) -> float:
    """2 x batch x features in x features out x pairs of positions that meet: TPUs write all products like this."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0.0
    lhs, rhs, out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * left.dims[lhs.index("b")] * right.dims[rhs.index("i")] * right.dims[rhs.index("o")]
    for axis in range(len(lhs) - 2):
        places = (left.dims[lhs.index(str(axis))], right.dims[rhs.index(str(axis))])
        total *= _meetings(*places, one.results[0].dims[out.index(str(axis))], settings, axis)
    return total


def _meetings(size: int, window: int, out: int, settings: dict[str, str], axis: int) -> int:
    """Pairs of (place in the result, place in the window) that read a real element, along one axis."""

    def setting(name: str, default: str) -> str:
        return settings[name].split("x")[axis] if name in settings else default

    stride, apart = int(setting("stride", "1")), int(setting("rhs_dilate", "1"))
    spread, before = int(setting("lhs_dilate", "1")), int(setting("pad", "0_0").split("_")[0])
    if window == 1 and spread == stride == 1 and before == 0:
        return min(out, size)
    read = np.arange(out)[:, None] * stride - before + np.arange(window)[None] * apart
    return int(np.sum((read >= 0) & (read <= (size - 1) * spread) & (read % spread == 0)))
