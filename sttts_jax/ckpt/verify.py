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
from sttts_jax.ckpt.ocdbt import file_of, stored_arrays
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
    if not folder.exists():
        raise FileNotFoundError(f"{folder.name} is missing")
    # As they are stored, and only then by Orbax, which prints pages about what it cannot open.
    stored = _stored(folder)
    for name in _share(stored):
        _read_leaf(step, part, name)
    lost = next((name for name in leaf_names(read_tree(step, part)) if name not in set(stored)), None)
    if lost is not None:
        raise ValueError(f"the array {lost} of {part} is missing")


def _stored(folder: epath.Path) -> list[str]:
    """Names of the arrays in a database."""
    try:
        names = stored_arrays(folder)
    except ValueError as error:
        if _is_no_damage(error):
            raise
        raise ValueError(f"the file {folder.name}/{_file_of_chunk(folder, str(error))} {_cause(error)}") from error
    return [name.replace(".", "/") for name in names]


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
    """The file that an error of TensorStore is about, which names the file of a bad node, else the chunk alone."""
    node = re.search(rf'of local file "{re.escape(str(folder))}/([^"]*[^"/])"', message)
    if node:
        return node[1]
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
