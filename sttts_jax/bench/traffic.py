"""What a program compiled for a TPU moves between HBM and the core, read from its text."""

import math
import re

import numpy as np

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s*(?:ROOT )?(%[\w.\-]+) = (\(.*?\)(?= [a-z])|\S+) ([a-z][\w\-]*)\((.*)")
_NAMES = re.compile(r"%[\w.\-]+")
_COPIES = ("copy-start", "slice-start")
_FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy-done", "slice-done")
_FREE_CALL = 'custom_call_target="ConcatBitcast"'  # gives the pieces of a copy one name


def hbm_bytes(text: str) -> int:
    """Bytes that the instructions of the entry computation read from HBM or write to it; `text` of `as_text()`.

    The compiler's own "bytes accessed" counts arrays that lie in the core's fast memory as well. Of a kernel, every
    operand and result counts once. Raises ValueError for a program with loops or branches, whose inside this does not
    see.
    """
    _, found, entry = text.partition("\nENTRY ")
    if not found:
        raise ValueError("the text has no ENTRY computation: it is not that of a compiled program")
    shapes: dict[str, str] = {}
    total = 0
    for name, shape, kind, rest in (match.groups() for match in map(_LINE.match, entry.splitlines()) if match):
        shapes[name] = shape
        if kind in ("while", "conditional"):
            raise ValueError(f"{name} is a {kind}; only straight programs can be counted")
        if kind in _COPIES:
            # (result, source, ..) or ((source), result, ..): one side is HBM, and as much as the smaller moves
            total += sorted(_sizes(shape))[-2 if kind == "copy-start" else 0]
        elif kind not in _FREE and _FREE_CALL not in rest:
            operands = _NAMES.findall(rest.split("), ")[0])
            total += sum(_sizes(" ".join([shape, *(shapes.get(x, "") for x in operands)]), hbm_only=True))
    return total


def free_calls(text: str) -> int:
    """Calls that cost nothing, each of which counts as -1 second, "unknown", in the compiler's estimate of a run."""
    return text.count(_FREE_CALL)


def _sizes(shape: str, hbm_only: bool = False) -> list[int]:
    """Bytes of the arrays in a shape; S(1) and the like in a layout are the core's own memory. Scalars are left out."""
    return [
        math.prod(int(size) for size in sizes.split(",")) * _width(kind)
        for kind, sizes, layout in _ARRAY.findall(shape)
        if sizes and not (hbm_only and "S(" in layout)
    ]


def _width(kind: str) -> int:
    if kind == "pred":
        return 1
    bits = re.search(r"\d+", kind)
    return int(np.ceil(int(bits[0]) / 8)) if bits else 0
