"""One entry of a table between our parameter tree and the tensors of a checkpoint in Hugging Face's layouts."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sttts_jax.convert.safetensors_files import FLOATS, StoredTensor
from sttts_jax.text_table import text_table
from sttts_jax.trees import named_leaves

MAX_ROWS = 40  # of a table in an error message

Shape = tuple[int, ...]
Index = tuple[Any, ...]


class CheckpointMismatch(ValueError):
    """The tensors of the files are not those that the table asks for."""


@dataclass(frozen=True)
class Piece:
    """`leaf`[`index`] of our tree, of `shape`, is `tensor`[`rows`] of the files (`rows` None: all of it).

    Stored, it is what `shape` becomes when reshaped to `split`, its axes put in `order`, then reshaped to `stored`.
    `copy`: the tensor repeats what another piece holds already (a tied head): written on export; on import it may be
    absent, and where it is there it must be equal.
    """

    leaf: str
    index: Index
    tensor: str
    rows: slice | None
    shape: Shape
    split: Shape
    order: tuple[int, ...]
    stored: Shape
    copy: bool = False

    def load(self, array: np.ndarray) -> np.ndarray:
        """The tensor's rows as stored -> `shape`; same dtype, same numbers."""
        cut = tuple(self.split[axis] for axis in self.order)
        return array.reshape(cut).transpose(np.argsort(self.order)).reshape(self.shape)

    def store(self, array: np.ndarray) -> np.ndarray:
        """`shape` -> the tensor's rows as stored; the inverse of `load`."""
        return array.reshape(self.split).transpose(self.order).reshape(self.stored)


def plain(leaf: str, index: Index, tensor: str, shape: Shape, stored: Shape | None = None) -> Piece:
    """Vectors and tables: stored as they are; one axis unless `stored` says more."""
    stored = (math.prod(shape),) if stored is None else stored
    return Piece(leaf, index, tensor, None, shape, shape, tuple(range(len(shape))), stored)


def rows_of(leaf: str, tensor: str, shape: tuple[int, int], copy: bool = False) -> Piece:
    """A table [rows, E], alone in its tensor."""
    return Piece(leaf, (), tensor, None, shape, shape, (0, 1), shape, copy)


def part_of_rows(
    leaf: str, leaf_span: tuple[int, int], tensor: str, tensor_span: tuple[int, int], rows: slice, width: int
) -> Piece:
    """`rows` of a table [rows, width], of which leaf and tensor hold the spans (first, end)."""
    shape = (rows.stop - rows.start, width)
    index = () if shape[0] == leaf_span[1] - leaf_span[0] else (_shifted(rows, leaf_span[0]),)
    place = None if shape[0] == tensor_span[1] - tensor_span[0] else _shifted(rows, tensor_span[0])
    return Piece(leaf, index, tensor, place, shape, shape, (0, 1), shape)


def _shifted(rows: slice, first: int) -> slice:
    return slice(rows.start - first, rows.stop - first)


def linear(leaf: str, index: Index, tensor: str, inputs: Shape, outputs: Shape, first: int | None = None) -> Piece:
    """A kernel [inputs.., outputs..], stored as [out, in]; `first`: its first row in a tensor that holds more."""
    split = (math.prod(inputs), math.prod(outputs))
    rows = None if first is None else slice(first, first + split[1])
    return Piece(leaf, index, tensor, rows, inputs + outputs, split, (1, 0), split[::-1])


def convolution(leaf: str, tensor: str, patch: int, channels: int, width: int) -> Piece:
    """A kernel [row column channel, width], stored as a convolution [width, channel, row, column]."""
    split = (patch, patch, channels, width)
    shape = (patch * patch * channels, width)
    return Piece(leaf, (), tensor, None, shape, split, (3, 2, 0, 1), (width, channels, patch, patch))


def fused(tensors: Sequence[str], kernels: Sequence[tuple[str, Index, Shape, Shape]]) -> Iterator[Piece]:
    """Kernels (leaf, index, inputs, outputs) as tensors of their own, or one below the other in a single tensor."""
    if len(tensors) == len(kernels):
        for tensor, (leaf, index, inputs, outputs) in zip(tensors, kernels, strict=True):
            yield linear(leaf, index, tensor, inputs, outputs)
        return
    (tensor,), first = tensors, 0
    for leaf, index, inputs, outputs in kernels:
        yield linear(leaf, index, tensor, inputs, outputs, first)
        first += math.prod(outputs)


def tensor_shapes(pieces: Iterable[Piece]) -> dict[str, Shape]:
    """{tensor: shape} in the table's order; rows of one tensor are added up."""
    shapes: dict[str, Shape] = {}
    for piece in pieces:
        before = shapes.get(piece.tensor, (0,))[0] if piece.rows is not None else 0
        shapes[piece.tensor] = (before + piece.stored[0], *piece.stored[1:])
    return shapes


def leaf_shapes(pieces: Iterable[Piece]) -> dict[str, Shape]:
    """{leaf: shape} that the pieces make up, in the table's order."""
    shapes: dict[str, Shape] = {}
    for piece in pieces:
        rest = list(piece.shape)
        lead = [max(rest.pop(0), x.stop or 0) if isinstance(x, slice) else x + 1 for x in piece.index]
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


def compare(pieces: Sequence[Piece], listing: Mapping[str, StoredTensor], ignored: Sequence[str] = ()) -> list[Piece]:
    """The pieces that the files hold: all of them, less absent copies. Nothing is read.

    `ignored`: names of the listing that are left out on purpose.
    Raises CheckpointMismatch with one table of missing and unmapped tensors, wrong shapes and dtypes.
    """
    copies = {piece.tensor for piece in pieces if piece.copy}
    wanted = {name: shape for name, shape in tensor_shapes(pieces).items() if name in listing or name not in copies}
    rows = []
    for name, shape in wanted.items():
        if name not in listing:
            rows.append((name, f"{list(shape)}", "missing"))
        elif tuple(listing[name].shape) != shape or listing[name].dtype not in FLOATS:
            got = f"{listing[name].dtype}{list(listing[name].shape)}"
            rows.append((name, f"{'|'.join(FLOATS)} {list(shape)}", got))
    known = {*wanted, *ignored}
    rows += [(name, "no such tensor", f"{x.dtype}{list(x.shape)}") for name, x in listing.items() if name not in known]
    if rows:
        more = f"\n... and {len(rows) - MAX_ROWS} more" if len(rows) > MAX_ROWS else ""
        raise CheckpointMismatch(
            f"{len(rows)} tensors of the checkpoint are not those of this model (expected = the config):\n"
            + text_table(("tensor", "expected", "got"), rows[:MAX_ROWS])
            + more
        )
    return [piece for piece in pieces if piece.tensor in wanted]
