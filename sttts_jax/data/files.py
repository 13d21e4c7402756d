"""Files that records name: regular files alone, opened so that nothing waits."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sttts_jax.paths import other_kind


def source_name(source: str | Path | bytes, name: str | None) -> str:
    """`name`, or without one what errors call a path or bytes."""
    return name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))


def open_file(path: str | Path, name: str, error: type[ValueError]) -> BinaryIO:
    """A local file with something in it, for reading. Raises `error` with `name` and what is wrong otherwise.

    A path is never an address, whatever it looks like. Pipes and devices, which could be waited for or read for ever,
    are refused before they are opened.
    """
    try:
        found = os.stat(path)
        kind = other_kind(found.st_mode)
        if kind:
            raise error(f"{name}: is not a file but {kind}")
        if found.st_size == 0:
            raise error(f"{name}: is empty")
        # Without waiting, should a pipe have taken the file's place in between.
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{name}: no such file") from None
    except OSError as problem:
        raise error(f"{name[:200]}: cannot be read ({problem.strerror})") from None  # no permission, a name too long
    except (UnicodeError, ValueError) as problem:
        if isinstance(problem, error):
            raise
        raise error(f"{name[:200]}: cannot be read ({problem})") from None


def content_digest(source: str | Path | bytes) -> str:
    """SHA-256 of a file (path or its bytes), '' where there is none that can be read. One that has not changed is read
    once.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    path = Path(source)
    try:
        if not path.is_file():
            return ""
        facts = path.stat()
        return _digest(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    except OSError:  # said when it is opened for what it holds
        return ""


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
