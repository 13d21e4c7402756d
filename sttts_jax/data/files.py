"""Files that records name."""

from pathlib import Path


def source_name(source: str | Path | bytes, name: str | None) -> str:
    """`name`, or without one what errors call a path or bytes."""
    return name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))


def existing_file(path: str | Path, name: str, error: type[ValueError]) -> Path:
    """`path`, where it is a file with something in it. Raises `error` with `name` and what is wrong otherwise."""
    path = Path(path)
    if not path.exists():
        raise error(f"{name}: no such file")
    if not path.is_file():
        raise error(f"{name}: is not a file")
    if path.stat().st_size == 0:
        raise error(f"{name}: is empty")
    return path
