"""The one rule by which every reader of parameters chooses a step: the newest whose bytes are as they were saved.

`evaluate`, `answer`, `score`, `convert` and `init_from` ask `whole_step`; a resume, which reads everything anyway, goes
by the same order in `ckpt.manager`. A step that is passed over is said on stderr, with the step that is used.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tensorstore as ts
from absl import logging
from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.checksums import has_checksums
from sttts_jax.ckpt.meta import FormatMismatch
from sttts_jax.ckpt.ocdbt import file_of
from sttts_jax.ckpt.restore import DATA, PARAMS, read_step_meta, read_tree
from sttts_jax.ckpt.slices import COARSE_BYTES, chunk_of, open_leaf, regions
from sttts_jax.distributed import gather_json
from sttts_jax.paths import PathLike, as_path, read_json
from sttts_jax.trees import leaf_names

# How TensorStore begins to speak of what lies outside of the bytes.
_NO_DAMAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
AT_ONCE = 4  # chunks that are read at a time; of coarse ones 1


class DamagedStep(ValueError):
    """No step is as it was saved, or not the one that was asked for."""


def whole_step(directory: PathLike) -> epath.Path:
    """The step directory meant by DIR, of which meta and parameters are as they were saved.

    DIR is a step, which is then the only one, or holds some, itself or as a run's workdir. The parameters are read
    once for that; several processes share the work, so all must ask. Raises FileNotFoundError where there is no step,
    DamagedStep where none is whole, FormatMismatch.
    """
    root = as_path(directory)
    if files.is_step(root):
        return _only(root)
    for place in files.directories_of_steps(root):
        broken: dict[int, str] = {}
        for step in reversed(files.list_steps(place)):
            path = files.step_directory(place, step)
            problem = problem_everywhere(path, (PARAMS,))
            if not problem:
                say_used(path, broken)
                return path
            broken[step] = problem
        raise DamagedStep(none_is_whole(place, broken))
    raise FileNotFoundError(files.no_checkpoint(root))


def _only(step: epath.Path) -> epath.Path:
    problem = problem_everywhere(step, (PARAMS,))
    if problem:
        raise DamagedStep(
            f"{step} is damaged: {problem}; restore the file, or give the directory of steps to take the one before"
        )
    say_used(step, {})
    return step


def say_used(step: epath.Path, broken: Mapping[int, str]) -> None:
    """On stderr: every newer step that was passed over and why, and what of the used one cannot be checked."""
    if jax.distributed.is_initialized() and jax.process_index() > 0:
        return
    for number, problem in broken.items():
        logging.warning(
            "checkpoint step %d in %s is damaged: %s; step %s is used in its place",
            number,
            step.parent,
            problem,
            step.name,
        )
    unchecked = _unchecked(step)
    if unchecked:
        logging.warning("checkpoint step %s in %s has no checksums of its %s", step.name, step.parent, unchecked)


def none_is_whole(directory: PathLike, broken: Mapping[int, str]) -> str:
    """The sentence about a directory whose steps are all damaged."""
    listed = "; ".join(f"step {step}: {problem}" for step, problem in broken.items())
    return f"no step in {directory} can be read ({listed}); restore the files or start in another directory"


def _unchecked(step: epath.Path) -> str:
    """What of a step that could be read was saved without checksums."""
    names = leaf_names(read_tree(step, PARAMS))
    arrays = not all(has_checksums(open_leaf(step, name)) for name in names[:1])
    parts = [*(["arrays"] if arrays else []), *([] if files.has_digests(step) else ["other files"])]
    return " and ".join(parts)


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
            if part == DATA:
                _read_positions(step / part)
            else:
                _read_arrays(step, part)
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


def _read_positions(folder: epath.Path) -> None:
    if folder.exists():
        for file in folder.glob("*.json"):
            read_json(file)


def _read_arrays(step: epath.Path, part: str) -> None:
    """Reads this process's share of the arrays, chunk by chunk, which compares checksums; raises where one differs."""
    for name in _share(leaf_names(read_tree(step, part))):
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
