"""Arrays of a checkpoint written and read in slices, so that no leaf has to fit into memory.

    create_step(step, {"llm/blocks/q": spec, ...}, meta)            # the tree, of placeholders
    leaf = create_leaf(step, "llm/blocks/q", shape, dtype, units=(0,))
    write_slice(leaf, (3,), array)                                  # layer 3
    read_slice(open_leaf(step, "llm/blocks/q"), (3,))

Leaves are stacked over layers, so that one of them can be larger than all files that its layers come from, and Orbax
saves whole leaves. So Orbax saves the tree with a number in the place of every array, and TensorStore, which Orbax
writes arrays with, puts the arrays there. The result is an ordinary checkpoint: `ckpt.restore` reads it.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import v1 as ocp

from sttts_jax.ckpt.checksums import CRC32C
from sttts_jax.ckpt.ocdbt import base_store
from sttts_jax.ckpt.restore import META, PARAMS, saving_context
from sttts_jax.paths import PathLike, as_path

CHUNK_BYTES = 32 * 2**20  # at most, of what is written or read at once
WHOLE_BYTES = 4 * 2**20  # leaves up to this size are one chunk
COARSE_BYTES = 64 * 2**20  # chunks above this were not written here

Index = tuple[Any, ...]  # numbers and slices, one an axis from the first on; the axes of numbers are gone after it


def create_step(step_path: PathLike, leaves: Iterable[str], meta: Mapping[str, Any]) -> None:
    """A step directory with `meta`, and a placeholder for each leaf 'a/b/c'; replace all of them by `create_leaf`."""
    tree = unflatten_dict({name: np.zeros(1, np.float32) for name in leaves}, sep="/")
    with saving_context():
        ocp.save_checkpointables(as_path(step_path), {PARAMS: tree, META: dict(meta)})


def chunk_shape(shape: Sequence[int], itemsize: int, units: Sequence[int]) -> tuple[int, ...]:
    """Shape of a chunk: one along the axes `units`, the longest other axes halved until it has CHUNK_BYTES at most."""
    if math.prod(shape) * itemsize <= WHOLE_BYTES:
        return tuple(shape)
    chunk = [1 if axis in units else size for axis, size in enumerate(shape)]
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        longest = chunk.index(max(chunk))
        chunk[longest] = math.ceil(chunk[longest] / 2)
    return tuple(chunk)


def create_leaf(
    step_path: PathLike, name: str, shape: Sequence[int], dtype: Any, units: Sequence[int] = ()
) -> ts.TensorStore:
    """An array in the place of a leaf, its chunks as `chunk_shape` says; everything in it is still to be written."""
    chunk = chunk_shape(shape, np.dtype(dtype).itemsize, units)
    return _create(_store(as_path(step_path) / PARAMS, name), shape, dtype, chunk)


def open_leaf(step_path: PathLike, name: str, part: str = PARAMS) -> ts.TensorStore:
    """A leaf to read slices of."""
    return ts.open({"driver": "zarr3", "kvstore": _store(as_path(step_path) / part, name)}, open=True).result()


def _store(folder: epath.Path, name: str) -> dict[str, Any]:
    """Where Orbax keeps a leaf."""
    return {"driver": "ocdbt", "base": base_store(folder), "path": name.replace("/", ".")}


def _create(kvstore: dict[str, Any], shape: Sequence[int], dtype: Any, chunk: Sequence[int]) -> ts.TensorStore:
    """Not compressed: weights hardly become smaller, and sizes are known before."""
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore,
        "metadata": {
            "shape": list(shape),
            "data_type": np.dtype(dtype).name,
            "chunk_grid": grid,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, CRC32C],
        },
        # Orbax takes a chunk that is not there for a damaged file, zeros or not.
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, delete_existing=True).result()


def chunk_of(leaf: ts.TensorStore) -> tuple[int, ...]:
    """Shape of the leaf's chunks."""
    return tuple(int(size or 0) for size in leaf.chunk_layout.read_chunk.shape or ())


def write_slice(leaf: ts.TensorStore, index: Index, array: np.ndarray) -> None:
    """leaf[index] = array, of the leaf's dtype; `index` of numbers and slices that begin where a chunk does.

    Chunk by chunk: beside `array`, about two chunks are in memory.
    """
    place = leaf[index]  # of the array's shape, but numbered as in the leaf: slice(3, 6) goes from 3 on
    if array.ndim:
        place = place[ts.d[:].translate_to[0]]  # numbered from 0 on, as the array
    for region in regions(array.shape, _without_numbers(chunk_of(leaf), index)):
        place[region].write(array[region]).result()


def read_slice(leaf: ts.TensorStore, index: Index) -> np.ndarray:
    """leaf[index], an array of its own."""
    return leaf[index].read().result()


def _without_numbers(chunk: Sequence[int], index: Index) -> list[int]:
    """Sizes of a chunk along the axes that are left after the index: (1, 8, 4) under (3, slice(8)) is [8, 4]."""
    numbers = {axis for axis, entry in enumerate(index) if not isinstance(entry, slice)}
    return [size for axis, size in enumerate(chunk) if axis not in numbers]


def regions(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices that cut an array of `shape` into chunks, in order: (5,) by (2,) is 0:2, 2:4, 4:5."""
    cuts = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, chunk, strict=True)
    ]
    return itertools.product(*cuts)


def fine_leaf(leaf: ts.TensorStore, name: str, folder: PathLike) -> ts.TensorStore:
    """The leaf itself, or a copy of it below `folder` where its chunks are so large that layers are read many times.

    A training run writes a chunk for every device: all layers of a part of a matrix.
    """
    coarse, dtype = chunk_of(leaf), leaf.dtype.numpy_dtype
    if math.prod(coarse) * dtype.itemsize <= COARSE_BYTES:
        return leaf
    fine = list(coarse)  # fewer layers, the rest whole
    while math.prod(fine) * dtype.itemsize > CHUNK_BYTES and fine[0] > 1:
        fine[0] = math.ceil(fine[0] / 2)
    copy = _create(_store(as_path(folder), name), leaf.shape, dtype, fine)
    for region in regions(leaf.shape, coarse):  # each chunk of the source is read once
        copy[region].write(leaf[region].read().result()).result()
    return copy
