"""The directory that a conversion writes: that it is free and has room, that it appears whole or not at all, and the
side files (configs, tokenizer, templates) that go along byte for byte.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from sttts_jax.convert.safetensors_files import INDEX
from sttts_jax.paths import PathLike, as_path, is_local, read_bytes

SIDE_SUFFIXES = (".json", ".txt", ".jinja")
CONFIG = "config.json"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
SLACK = 2**24  # bytes of side files and of what the file system needs itself


def check_target(target: PathLike) -> None:
    """Raises ValueError when the target is remote, or exists and is not empty."""
    place = as_path(target)
    if not is_local(place):
        raise ValueError(f"{place} is remote, where a directory cannot be renamed; write to a local one and copy it")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} exists already; name a directory that does not, or empty it")


def check_room(target: PathLike, nbytes: int) -> None:
    """Raises ValueError when the target's disk has no room for so many bytes."""
    place = as_path(target)
    there = place
    while not there.exists():
        there = there.parent
    free, needed = shutil.disk_usage(os.fspath(there)).free, int(1.01 * nbytes) + SLACK
    if needed > free:
        raise ValueError(
            f"{place} needs {size_text(needed)}, but its disk has {size_text(free)} left; free some, or name a place "
            "elsewhere"
        )


@contextlib.contextmanager
def whole_directory(path: PathLike) -> Iterator[epath.Path]:
    """A temporary neighbour to write into, renamed to `path` when the block ends, removed when it raises.

    A SIGTERM or SIGHUP that would end the process on the spot ends it by way of this removal. Raises as
    `check_target`, and ValueError where the disk is full or read-only.
    """
    check_target(path)
    target = as_path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    with _unwound_by_signals(), _disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            _take_place(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def _disk_named(target: epath.Path) -> Iterator[None]:
    """One sentence for whatever a full or read-only disk makes Python, Orbax and TensorStore raise."""
    try:
        yield
    except Exception as error:
        cause = _disk_cause(error)
        if not cause:
            raise
        raise ValueError(
            f"{target} cannot be written ({cause}); nothing of it is left: free space there, or name another place"
        ) from error


def _disk_cause(error: Exception) -> str:
    told = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore raises ValueError
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else 0
    return os.strerror(number) if number in DISK_ERRORS else ""


def _take_place(directory: epath.Path, target: epath.Path) -> None:
    """Renames `directory` to `target`, which may be an empty directory."""
    if target.exists():
        target.rmdir()
    directory.rename(target)


@contextlib.contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """A SIGTERM or SIGHUP that nobody handles raises SystemExit meanwhile; a handler of the caller's stays, and so does
    being deaf to it (nohup).
    """

    def stop(number: int, frame: Any) -> None:
        del frame
        raise SystemExit(128 + number)

    own = threading.current_thread() is threading.main_thread()  # others may set none
    caught = [name for name in (signal.SIGTERM, signal.SIGHUP) if own and signal.getsignal(name) is signal.SIG_DFL]
    for name in caught:
        signal.signal(name, stop)
    try:
        yield
    finally:
        for name in caught:
            signal.signal(name, signal.SIG_DFL)


def side_files(folder: epath.Path) -> list[epath.Path]:
    """Configs, tokenizer, templates: everything that is text and not the list of shards."""
    return sorted(
        file for file in folder.iterdir() if file.suffix in SIDE_SUFFIXES and file.name != INDEX and not file.is_dir()
    )


def copy_files(files: list[epath.Path], folder: epath.Path) -> None:
    """Byte for byte."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_bytes(read_bytes(file))


def size_text(nbytes: int) -> str:
    """As people write it."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
