"""Files that records name: regular files alone, opened so that nothing waits, and objects of gs://, read at once."""

import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sttts_jax.paths import other_kind, read_bytes

STORE = "gs://"


def source_name(source: str | Path | bytes, name: str | None) -> str:
    """`name`, or without one what errors call a path or bytes."""
    return name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))


def open_file(path: str | Path, name: str, error: type[ValueError]) -> BinaryIO:
    """A file with something in it, for reading. Raises `error` with `name` and what is wrong otherwise.

    A path is never an address, whatever it looks like, but for gs://, whose objects are read whole. Pipes and devices,
    which could be waited for or read for ever, are refused before they are opened.
    """
    if str(path).startswith(STORE):
        return io.BytesIO(read_object(str(path), name, error))
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


def read_object(path: str, name: str, error: type[ValueError]) -> bytes:
    """What an object of gs:// holds. Raises as `open_file`."""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise error(f"{name}: no such file") from None
    except Exception as problem:  # whatever the client of the store raises
        raise error(f"{name}: cannot be read ({' '.join(str(problem).split())[:200]})") from problem
    if not data:
        raise error(f"{name}: is empty")
    return data


def content_digest(source: str | Path | bytes) -> str:
    """SHA-256 of a file (path or its bytes), '' where there is none that can be read. One that has not changed is read
    once.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if str(source).startswith(STORE):
        return hashlib.sha256(read_object(str(source), str(source), ValueError)).hexdigest()
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
