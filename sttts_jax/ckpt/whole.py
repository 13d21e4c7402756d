"""The one rule by which every reader of parameters chooses a step: the newest whose bytes are as they were saved.

`evaluate`, `answer`, `score`, `convert` and `init_from` ask `whole_step`; a resume, which reads everything anyway, goes
by the same order in `ckpt.manager`. A step that is passed over is said on stderr, with the step that is used.
"""

from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.checksums import has_checksums
from sttts_jax.ckpt.restore import PARAMS, read_tree
from sttts_jax.ckpt.slices import open_leaf
from sttts_jax.ckpt.verify import problem_everywhere
from sttts_jax.paths import PathLike, as_path
from sttts_jax.trees import leaf_names


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
    places = files.directories_of_steps(root)
    if not places:
        raise FileNotFoundError(files.no_checkpoint(root))
    return _newest(places[0])


def _newest(directory: epath.Path) -> epath.Path:
    broken: dict[int, str] = {}
    for step in reversed(files.list_steps(directory)):
        path = files.step_directory(directory, step)
        problem = problem_everywhere(path, (PARAMS,))
        if not problem:
            say_used(path, broken)
            return path
        broken[step] = problem
    raise DamagedStep(none_is_whole(directory, broken))


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
