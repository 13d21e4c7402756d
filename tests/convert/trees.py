"""Tensors of files as a parameter tree in memory: the inverse of `convert.piece.tensors_of`, for small models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sttts_jax.convert.piece import Piece, leaf_shapes


def params_of(tensors: Mapping[str, np.ndarray], pieces: Sequence[Piece]) -> dict[str, Any]:
    """{tensor: array} as a nested tree of new arrays; dtypes are the tensors'.

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
