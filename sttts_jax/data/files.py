"""Files that records name."""

import hashlib
import stat
from functools import lru_cache
from pathlib import Path


def source_name(source: str | Path | bytes, name: str | None) -> str:
    """`name`, or without one what errors call a path or bytes."""
    return name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))


def existing_file(path: str | Path, name: str, error: type[ValueError]) -> Path:
    """`path`, where it is a file with something in it. Raises `error` with `name` and what is wrong otherwise."""
    path = Path(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{name}: no such file") from None
    except (OSError, ValueError) as problem:  # no permission, a name that is too long, a NUL in it
        cause = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{name[:200]}: cannot be read ({cause})") from None
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{name}: is not a file")
    if found.st_size == 0:
        raise error(f"{name}: is empty")
    return path


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
