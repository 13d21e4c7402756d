"""Whether what is in the files of a step is as it was saved: reads it, which compares every checksum."""

import collections
import math
import re
from collections.abc import Sequence

import jax
import numpy as np
import tensorstore as ts
from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.meta import FormatMismatch
from sttts_jax.ckpt.ocdbt import file_of
from sttts_jax.ckpt.restore import DATA, read_step_meta, read_tree
from sttts_jax.ckpt.slices import COARSE_BYTES, chunk_of, open_leaf, regions
from sttts_jax.distributed import gather_json
from sttts_jax.paths import read_json
from sttts_jax.trees import leaf_names

# How TensorStore begins to speak of what lies outside of the bytes.
_NO_DAMAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
AT_ONCE = 4  # chunks that are read at a time; of coarse ones 1


def problem_everywhere(step: epath.Path, parts: Sequence[str]) -> str:
    """Why the files of a step, or what is in those of `parts`, are not as they were saved, '' when they are.

    The same on every process, so all must ask. Raises FormatMismatch, and what is no damage (memory, rights).
    """
    problem = files.step_problem(step) or _unreadable(step, parts)
    if not jax.distributed.is_initialized():
        return problem
    return next((told for told in gather_json(problem) if told), "")


def _unreadable(step: epath.Path, parts: Sequence[str]) -> str:
    try:
        read_step_meta(step)
        for part in parts:
            _read_part(step, part)
    except FormatMismatch:
        raise
    except Exception as error:  # whatever damaged bytes make Orbax and TensorStore raise
        if _is_no_damage(error):
            raise
        return first_line(error)
    return ""


def _is_no_damage(error: Exception) -> bool:
    """No memory, no rights, no connection: going back a step mends none of them."""
    lost = isinstance(error, FileNotFoundError)
    return isinstance(error, MemoryError | OSError) and not lost or str(error).startswith(_NO_DAMAGE)


def first_line(error: Exception) -> str:
    """Of an error's message, cut: Orbax and TensorStore print pages."""
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


def _read_part(step: epath.Path, part: str) -> None:
    """Reads the positions of the data, or this process's share of the arrays; raises where something is wrong."""
    folder = step / part
    if part == DATA:
        for file in folder.glob("*.json") if folder.exists() else ():
            read_json(file)
        return
    for name in _share(leaf_names(read_tree(step, part))):
        _read_leaf(step, part, name)


def _read_leaf(step: epath.Path, part: str, name: str) -> None:
    try:
        _read_through(open_leaf(step, name, part))
    except ValueError as error:
        if _is_no_damage(error):
            raise
        file = _file_of_chunk(step / part, str(error))
        raise ValueError(f"the file {part}/{file} {_cause(error)} (array {name})") from error


def _cause(error: ValueError) -> str:
    mismatch = "Digest mismatch" in str(error) or "checksum verification failed" in str(error)
    return "does not match its checksum" if mismatch else f"cannot be read: {first_line(error)}"


def _file_of_chunk(folder: epath.Path, message: str) -> str:
    """The file that an error of TensorStore is about, which names the chunk alone, or the file where a node is bad."""
    chunk = re.search(r'"([^"]+/c[^"]*)" in OCDBT', message)
    try:
        return (chunk and file_of(folder, chunk[1])) or "manifest.ocdbt"
    except ValueError:
        return "manifest.ocdbt"


def _share(names: list[str]) -> list[str]:
    """This process's part of the work."""
    if not jax.distributed.is_initialized():
        return names
    return names[jax.process_index() :: jax.process_count()]


def _read_through(array: ts.TensorStore) -> None:
    chunk = chunk_of(array)
    ahead = AT_ONCE if math.prod(chunk) * array.dtype.numpy_dtype.itemsize <= COARSE_BYTES else 1
    reads: collections.deque[ts.Future[np.ndarray]] = collections.deque()
    for region in regions(array.shape, chunk):
        reads.append(array[region].read())
        if len(reads) >= ahead:
            reads.popleft().result()
    for read in reads:
        read.result()
