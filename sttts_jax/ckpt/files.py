"""What lies in a directory of steps, and whether a step's files are all there and as they were saved.

DIR/<step>/            one Orbax checkpoint: params, opt, data, meta
DIR/sizes/<step>.json  {file: [bytes, digest]}, written after the commit; of files of array data, whose checksums are
                       in themselves, {file: bytes}, so that truncation shows without reading the arrays
DIR/broken/<step>.<n>  steps that a resume had to pass over, kept for a look
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from sttts_jax.ckpt.checksums import digest
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import PathLike, as_path, is_local, list_objects, move_folder, read_json, write_json

_MARKER = "_CHECKPOINT_METADATA"  # Orbax writes it into every step
_COMMITTED = "commit_success.txt"  # and this last, where it cannot rename a folder in one piece
_ARRAY_DATA = "d"  # the folder of an OCDBT database where chunks lie
_READERS = 16  # files at a time: buckets answer late

_Record = Mapping[str, tuple[int, str]]  # {file: (bytes, digest, '' where the record has none)}


def list_steps(directory: PathLike) -> list[int]:
    """Numbers of the step directories, ascending; unfinished saves are not among them."""
    return [number for number in _numbered(as_path(directory)) if is_finished(step_directory(directory, number))]


def _numbered(root: epath.Path) -> list[int]:
    if not root.exists():
        return []
    return sorted(int(path.name) for path in root.iterdir() if re.fullmatch(r"\d+", path.name))


def is_finished(path: epath.Path) -> bool:
    """Whether a numbered directory is a step that was saved to its end. Local ones have temporary names until then; in
    a store, which renames nothing, a last object says it, or the record of a step that was copied there.
    """
    return path.is_dir() if is_local(path) else (path / _COMMITTED).exists() or _record_file(path).exists()


def unfinished(directory: PathLike) -> list[epath.Path]:
    """What saves left that did not end: by a killed process, or going on."""
    root = as_path(directory)
    if is_local(root):
        return list(root.glob("*.orbax-checkpoint-tmp*")) if root.exists() else []
    paths = (step_directory(root, number) for number in _numbered(root))
    return [path for path in paths if not is_finished(path)]


def step_directory(directory: PathLike, step: int) -> epath.Path:
    """DIR/<step>."""
    return as_path(directory) / str(step)


def directories_of_steps(directory: PathLike) -> list[epath.Path]:
    """Where DIR has steps: in itself, or, where it is a run's workdir, in its checkpoints."""
    return [place for place in (as_path(directory), Workdir(directory).checkpoints) if list_steps(place)]


def is_step(path: PathLike) -> bool:
    """Whether the directory is one step."""
    return (as_path(path) / _MARKER).exists()


def written_at(step_path: epath.Path) -> int:
    """When a step was saved, in seconds since 1970. Folders of a store have no time, so that a file tells."""
    marker = step_path / _MARKER
    return (marker if marker.exists() else step_path).stat().mtime


def resolve_step(directory: PathLike) -> epath.Path:
    """The step directory meant by DIR, which is either one itself or holds some; then the newest one that is there
    whole, as far as shows without its arrays. Who reads arrays asks `ckpt.whole`.

    A run's workdir works too. Raises FileNotFoundError that says what was looked for.
    """
    root = as_path(directory)
    if is_step(root):
        return root
    for place in directories_of_steps(root):
        whole = next((step for step in reversed(list_steps(place)) if not problem_of(place, step)), None)
        if whole is not None:
            return step_directory(place, whole)
    raise FileNotFoundError(no_checkpoint(root))


def no_checkpoint(root: epath.Path) -> str:
    """The sentence about a directory without one."""
    if root.is_dir() and any(path.suffix == ".safetensors" for path in root.iterdir()):
        return (
            f"{root} holds files as Hugging Face publishes them; convert them first: "
            f"sttts-jax convert --from hf:{root} --to orbax:DIR"
        )
    why = "" if root.exists() else ", because there is no such directory"
    return f"{root} holds no whole checkpoint{why}; give a step directory, a directory of steps, or a run's workdir"


def _record_file(step_path: epath.Path) -> epath.Path:
    return step_path.parent / "sizes" / f"{step_path.name}.json"


def file_sizes(path: epath.Path) -> dict[str, int]:
    """{relative file name: bytes} of everything below the path."""
    if not is_local(path):
        return {name: size for name, (size, _) in list_objects(path).items()}
    sizes: dict[str, int] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            sizes.update({f"{entry.name}/{name}": size for name, size in file_sizes(entry).items()})
        else:
            sizes[entry.name] = entry.stat().length
    return sizes


def record_files(directory: PathLike, step: int) -> None:
    """Remembers the files of a committed step, and forgets those of steps that are gone."""
    path = step_directory(directory, step)
    sizes = file_sizes(path)
    digests = _digests(path, [name for name in sizes if _ARRAY_DATA not in name.split("/")[:-1]])
    write_json(
        _record_file(path), {name: [size, digests[name]] if name in digests else size for name, size in sizes.items()}
    )
    kept = set(list_steps(directory))
    for file in (as_path(directory) / "sizes").glob("*.json"):
        if file.stem.isdigit() and int(file.stem) not in kept:
            file.unlink(missing_ok=True)


def _digests(path: epath.Path, names: Iterable[str]) -> dict[str, str]:
    """{relative file name: digest}."""
    names = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: digest(path / name), names), strict=True))


def _read_record(step_path: epath.Path) -> _Record | None:
    """None where there is none that can be read."""
    file = _record_file(step_path)
    try:
        entries = read_json(file).items() if file.exists() else ()
        return {name: _entry(value) for name, value in entries} or None
    except (ValueError, TypeError, AttributeError):
        return None


def _entry(value: Any) -> tuple[int, str]:
    size, told = value if isinstance(value, list) else (value, "")
    return int(size), str(told)


def problem_of(directory: PathLike, step: int) -> str:
    """`step_problem` of DIR/<step>."""
    return step_problem(step_directory(directory, step))


def step_problem(path: epath.Path) -> str:
    """Why the step cannot be whole, '' when nothing speaks against it. Arrays are not read.

    Without a record (the process died between commit and record) only the marker is looked at; the load decides.
    """
    if not is_step(path):
        return f"{_MARKER} is missing: the save was not finished"
    try:
        read_json(path / _MARKER)
    except ValueError:
        return f"{_MARKER} is not valid JSON"
    record = _read_record(path)
    return "" if record is None else _difference(path, record)


def _difference(path: epath.Path, record: _Record) -> str:
    """The first file that is not as it was recorded."""
    found = file_sizes(path)
    for name, (size, _) in record.items():
        if name not in found:
            return f"the file {name} is missing"
        if found[name] != size:
            return f"the file {name} has {found[name]} bytes instead of {size}"
    digests = _digests(path, [name for name, (_, told) in record.items() if told])
    changed = (name for name, now in digests.items() if now != record[name][1])
    return next((f"the file {name} does not match its checksum" for name in changed), "")


def has_digests(step_path: epath.Path) -> bool:
    """Whether files other than array data can be told from damaged ones."""
    record = _read_record(step_path)
    return record is not None and any(told for _, told in record.values())


def set_aside(directory: PathLike, step: int) -> epath.Path:
    """Moves a broken step out of the way, so that the run can save that step again. Returns where it went."""
    places = (as_path(directory) / "broken" / f"{step}.{number}" for number in itertools.count(1))
    place = next(place for place in places if not place.exists())
    path = step_directory(directory, step)
    _record_file(path).unlink(missing_ok=True)
    move_folder(path, place)
    return place
