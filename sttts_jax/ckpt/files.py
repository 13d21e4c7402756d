"""What lies in a directory of steps, and whether a step's files are all there and whole.

DIR/<step>/            one Orbax checkpoint: params, opt, data, meta
DIR/sizes/<step>.json  {file: bytes}, written after the commit, so that truncation shows without reading the arrays
DIR/broken/<step>.<n>  steps that a resume had to pass over, kept for a look
"""

import itertools
import re

from etils import epath

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import PathLike, as_path, read_json, write_json

_MARKER = "_CHECKPOINT_METADATA"  # Orbax writes it into every step


def list_steps(directory: PathLike) -> list[int]:
    """Numbers of the step directories, ascending; unfinished saves (temporary names) are not among them."""
    root = as_path(directory)
    if not root.exists():
        return []
    return sorted(int(path.name) for path in root.iterdir() if re.fullmatch(r"\d+", path.name) and path.is_dir())


def step_directory(directory: PathLike, step: int) -> epath.Path:
    """DIR/<step>."""
    return as_path(directory) / str(step)


def directories_of_steps(directory: PathLike) -> list[epath.Path]:
    """Where DIR has steps: in itself, or, where it is a run's workdir, in its checkpoints."""
    return [place for place in (as_path(directory), Workdir(directory).checkpoints) if list_steps(place)]


def resolve_step(directory: PathLike) -> epath.Path:
    """The step directory meant by DIR, which is either one itself or holds some; then the newest whole one.

    A run's workdir works too. Raises FileNotFoundError that says what was looked for.
    """
    root = as_path(directory)
    if (root / _MARKER).exists():
        return root
    for place in directories_of_steps(root):
        whole = next((step for step in reversed(list_steps(place)) if not problem_of(place, step)), None)
        if whole is not None:
            return step_directory(place, whole)
    raise FileNotFoundError(
        f"{root} holds no whole checkpoint; give a step directory, a directory of steps, or a run's workdir"
    )


def _sizes_file(directory: PathLike, step: int) -> epath.Path:
    return as_path(directory) / "sizes" / f"{step}.json"


def file_sizes(path: epath.Path) -> dict[str, int]:
    """{relative file name: bytes} of everything below the path."""
    sizes: dict[str, int] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            sizes.update({f"{entry.name}/{name}": size for name, size in file_sizes(entry).items()})
        else:
            sizes[entry.name] = entry.stat().length
    return sizes


def record_sizes(directory: PathLike, step: int) -> None:
    """Remembers the files of a committed step, and forgets those of steps that are gone."""
    write_json(_sizes_file(directory, step), file_sizes(step_directory(directory, step)))
    kept = set(list_steps(directory))
    for file in (as_path(directory) / "sizes").glob("*.json"):
        if file.stem.isdigit() and int(file.stem) not in kept:
            file.unlink(missing_ok=True)


def problem_of(directory: PathLike, step: int) -> str:
    """Why the step cannot be whole, '' when nothing speaks against it.

    Without a record of sizes (the process died between commit and record) only the marker is looked at; the load
    decides.
    """
    path = step_directory(directory, step)
    if not (path / _MARKER).exists():
        return f"{_MARKER} is missing: the save was not finished"
    try:
        read_json(path / _MARKER)
    except ValueError:
        return f"{_MARKER} is not valid JSON"
    record = _sizes_file(directory, step)
    if not record.exists():
        return ""
    try:
        expected = read_json(record)
    except ValueError:
        return ""
    found = file_sizes(path)
    for name, size in expected.items():
        if name not in found:
            return f"the file {name} is missing"
        if found[name] != size:
            return f"the file {name} has {found[name]} bytes instead of {size}"
    return ""


def set_aside(directory: PathLike, step: int) -> epath.Path:
    """Moves a broken step out of the way, so that the run can save that step again. Returns where it went."""
    places = (as_path(directory) / "broken" / f"{step}.{number}" for number in itertools.count(1))
    place = next(place for place in places if not place.exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    _sizes_file(directory, step).unlink(missing_ok=True)
    return step_directory(directory, step).rename(place)
