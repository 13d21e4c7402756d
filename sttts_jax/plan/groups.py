"""Which axes of the mesh a collective crosses, read from its replica groups."""

import math
import re
from collections.abc import Mapping

import numpy as np

_EXPLICIT = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_SUB_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, devices: int) -> np.ndarray | None:
    """[groups, members]: places in the mesh, of which each group exchanges; None where the text names none.

    Pairs of a permutation count as groups of two. Raises ValueError for a form that is not known.
    """
    if found := _IOTA.search(attributes):
        sizes, reshaped = _numbers(found[1]), _numbers(found[2])
        return _transposed(reshaped, found[3]).reshape(sizes)
    if found := _MESH.search(attributes):
        return _of_mesh(found[1], found[2], found[3], found[4], devices)
    if found := _EXPLICIT.search(attributes) or _PAIRS.search(attributes):
        groups = [_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", found[1])]
        if len({len(group) for group in groups}) != 1:
            raise ValueError(f"groups of different sizes are not read: {found[0]}")
        return np.array(groups)
    if "replica_groups={}" in attributes:
        return np.arange(devices)[None]
    if "replica_groups=" in attributes:
        raise ValueError(
            f"replica groups in an unknown form: {attributes[attributes.index('replica_groups=') :][:120]}"
        )
    return None


def crossed_axes(groups: np.ndarray, shape: Mapping[str, int]) -> tuple[str, ...]:
    """Axes along which the members of some group differ; `shape` of the mesh, in its order."""
    places = np.stack(np.unravel_index(groups, tuple(shape.values())), axis=-1)  # [groups, members, axes]
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, other in zip(shape, differ, strict=True) if other)


def _of_mesh(axes: str, ids: str | None, order: str | None, names: str, devices: int) -> np.ndarray:
    """`mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}`: groups over b; 'b':(2)2 is the part of b behind 2 of it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    flat = np.arange(devices) if ids is None else _transposed(_numbers(ids), order).reshape(-1)
    dims: list[tuple[int, bool]] = []  # (size, whether members differ along it)
    wanted = {name: (before, size) for name, before, size in _SUB_AXIS.findall(names)}
    for name, size in sizes.items():
        before, part = wanted.get(name, ("", ""))
        if part:
            dims += [(int(before), False), (int(part), True), (size // int(before) // int(part), False)]
        else:
            dims.append((size, name in wanted))
    grid = flat.reshape([size for size, _ in dims])
    members = [index for index, (_, inside) in enumerate(dims) if inside]
    outside = [index for index in range(len(dims)) if index not in members]
    return grid.transpose(outside + members).reshape(-1, math.prod(dims[index][0] for index in members))


def _transposed(sizes: list[int], order: str | None) -> np.ndarray:
    iota = np.arange(math.prod(sizes)).reshape(sizes)
    return iota.transpose(_numbers(order)) if order else iota


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word.strip()]
