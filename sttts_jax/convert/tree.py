"""Whole parameter trees through a table of pieces, in memory: for small models, tests and comparisons."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sttts_jax.convert.piece import Piece, Shape
from sttts_jax.trees import named_leaves


def leaf_shapes(pieces: Iterable[Piece]) -> dict[str, Shape]:
    """{leaf: shape} that the pieces make up, in the table's order."""
    shapes: dict[str, Shape] = {}
    for piece in pieces:
        rest = list(piece.shape)
        lead = [rest.pop(0) if isinstance(x, slice) else x + 1 for x in piece.index]
        shape = (*lead, *rest)
        shapes[piece.leaf] = tuple(map(max, shapes.get(piece.leaf, shape), shape))
    return shapes


def tensors_of(params: Mapping[str, Any], pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """The tree of `models.vlm.Vlm`, or a part of it, as {tensor: array}; arrays may be views of the leaves.

    Raises ValueError for leaves that the pieces do not cover, KeyError for one that they cover and the tree lacks.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    left = sorted(set(leaves) - {piece.leaf for piece in pieces})
    if left:
        raise ValueError(f"the checkpoint has no place for the parameters {', '.join(left[:12])}")
    parts: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        parts.setdefault(piece.tensor, []).append(piece.store(leaves[piece.leaf][piece.index]))
    return {name: part[0] if len(part) == 1 else np.concatenate(part) for name, part in parts.items()}


def params_of(tensors: Mapping[str, np.ndarray], pieces: Sequence[Piece]) -> dict[str, Any]:
    """{tensor: array} as a nested tree of new arrays; dtypes are the tensors'. The inverse of `tensors_of`.

    Raises ValueError when a copy (a tied head) is not equal to what it copies.
    """
    shapes = leaf_shapes(pieces)
    leaves: dict[str, np.ndarray] = {}
    for piece in pieces:
        array = tensors[piece.tensor]
        value = piece.load(array if piece.rows is None else array[piece.rows])
        if piece.copy:
            if not np.array_equal(leaves[piece.leaf][piece.index], value):
                raise ValueError(f"{piece.tensor} is not the copy that it should be; use a config whose head is untied")
            continue
        if piece.leaf not in leaves:
            leaves[piece.leaf] = np.empty(shapes[piece.leaf], array.dtype)
        leaves[piece.leaf][piece.index] = value
    return _nested(leaves)


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree
