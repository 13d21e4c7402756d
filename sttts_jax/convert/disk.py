"""What both directions of `convert` share: room on the disk, side files, the summary."""

import os
import resource
import shutil
import sys
import time

from etils import epath

from sttts_jax.convert.safetensors_files import INDEX
from sttts_jax.paths import PathLike, as_path, is_local

SIDE_SUFFIXES = (".json", ".txt", ".jinja")
CONFIG = "config.json"


def check_target(target: PathLike, nbytes: int) -> None:
    """Raises ValueError when the target is remote, or exists and is not empty, or has no room for so many bytes."""
    place = as_path(target)
    if not is_local(place):
        raise ValueError(f"{place} is remote, where a directory cannot be renamed; write to a local one and copy it")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} exists already; name a directory that does not, or empty it")
    there = place
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(os.fspath(there)).free, int(1.01 * nbytes) + 2**24
    if needed > free:
        raise ValueError(
            f"{place} needs {_size(needed)}, but its disk has {_size(free)} left; free some, or name a place elsewhere"
        )


def side_files(folder: epath.Path) -> list[epath.Path]:
    """Configs, tokenizer, templates: everything that is text and not the list of shards."""
    return sorted(
        file for file in folder.iterdir() if file.suffix in SIDE_SUFFIXES and file.name != INDEX and not file.is_dir()
    )


def copy_files(files: list[epath.Path], folder: epath.Path) -> None:
    """Byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())


class Summary:
    """The line at the end; the clock starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def text(self, tensors: int, parameters: int, nbytes: int, target: PathLike, dry_run: bool) -> str:
        """What was converted, or would be."""
        what = f"{tensors:,} tensors, {parameters:,} parameters, {_size(nbytes)}"
        if dry_run:
            return f"{what}: everything fits; nothing was written to {target}"
        seconds = time.perf_counter() - self._start
        return f"{what} -> {target} in {seconds:.1f} s; peak memory of the process {_size(peak_bytes())}"


def peak_bytes() -> int:
    """The most memory that this process has had. On Linux since it began: rusage there counts its parent's as well."""
    status = epath.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
