"""Files that records name."""

import stat
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
