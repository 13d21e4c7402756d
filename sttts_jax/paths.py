"""Local and gs:// paths through one type, and writes that are either whole or absent."""

import importlib.util
import json
import os
import tempfile
from typing import Any

from etils import epath

PathLike = str | os.PathLike[str]


def as_path(path: PathLike) -> epath.Path:
    """An epath.Path; local paths become absolute, '~' is expanded.

    Raises ValueError, before any device or file is touched, when the scheme cannot be served here.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("the path is empty; give a directory such as runs/demo or gs://bucket/run")
    scheme, mark, _ = text.partition("://")
    if not mark:
        return epath.Path(os.path.abspath(os.path.expanduser(text)))
    if scheme != "gs":
        raise ValueError(f"{text}: the scheme {scheme}:// is not supported; use a local path or gs://")
    if importlib.util.find_spec("gcsfs") is None and importlib.util.find_spec("tensorflow") is None:
        raise ValueError(f"{text}: gs:// paths need the package gcsfs; install it (it is in the extra 'tpu')")
    return epath.Path(text)


def is_local(path: PathLike) -> bool:
    """Whether the path is on a mounted file system."""
    return "://" not in os.fspath(path)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes the file whole or not at all, parents made: a temporary neighbour, fsync, rename.

    Object stores replace an object in one piece by themselves, so a gs:// path is written directly.
    """
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(target):
        target.write_bytes(data)
        return
    handle, temporary = tempfile.mkstemp(dir=os.fspath(target.parent), prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, os.fspath(target))
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _umask() -> int:
    """The process's umask; reading it needs setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` of readable JSON; NaN and infinities raise ValueError: other readers cannot read them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
    """The value of a JSON file. Raises ValueError that names the file when it is not JSON."""
    file = as_path(path)
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); it is truncated or not a file of this program") from None
