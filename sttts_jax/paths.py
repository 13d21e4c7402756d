"""Local and gs:// paths through one type, and writes that are either whole or absent.

gs:// is served by gcsfs, which etils asks through fsspec, and in checkpoints by TensorStore. Both take the credentials
of the machine. STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL point them at another server.
"""

import errno
import functools
import hashlib
import importlib.util
import json
import logging
import os
import stat
import tempfile
from typing import Any

from etils import epath

PathLike = str | os.PathLike[str]
_KINDS = {stat.S_IFREG: "", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


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
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{text}: gs:// paths need the package gcsfs; install it: pip install 'sttts-jax[gcs]'")
    _ask_stores_anew()
    return epath.Path(text)


@functools.cache
def _ask_stores_anew() -> None:
    """gcsfs would remember what lay in a folder, while TensorStore and other processes write there; and it logs, with a
    traceback, what it raises as well.
    """
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    for scheme in ("gs", "gcs"):
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def is_local(path: PathLike) -> bool:
    """Whether the path is on a mounted file system."""
    return "://" not in os.fspath(path)


def file_name(text: str, most: int = 80) -> str:
    """A name for a file or folder, at most `most` long, that says what the text says: letters and digits of ASCII, '-',
    '.' and '_' stay. Where that changes it, a digest of the text follows, so that different texts have different names.
    """
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "_" for c in text)
    if plain == text and len(text) <= most and text.strip("."):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{plain[: most - 9].strip('.')}-{digest}"


def other_kind(mode: int) -> str:
    """What is there in the place of a file, by the mode of `os.stat`; "" for a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def check_writable(path: PathLike) -> None:
    """Raises ValueError for a local file that cannot be written where it is to lie; makes nothing.

    Nothing but a regular file is replaced: not /dev/null, nor a pipe.
    """
    target = as_path(path)
    if not is_local(target):
        return
    _refuse_other_kinds(target, path)
    there = next(parent for parent in target.parents if parent.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be written, because {there} is a file; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written, because {there} is read-only; choose another place")


def _refuse_other_kinds(target: epath.Path, name: PathLike) -> None:
    kind = other_kind(os.stat(target).st_mode) if target.exists() else ""
    if kind:
        raise ValueError(f"{name} is {kind}; give the name of a file")


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes the file whole or not at all, parents made: a temporary neighbour, fsync, rename. Raises OSError with its
    name, ValueError in the place of a folder, a pipe or a device.

    Object stores replace an object in one piece by themselves, so a gs:// path is written directly.
    """
    target = as_path(path)
    local = is_local(target)
    if local:
        _refuse_other_kinds(target, path)
    try:
        if local:
            _write_local(epath.Path(os.path.realpath(target)), data)  # a link stays one
        else:
            _write_object(target, data)
    except OSError as error:  # with the name of the file, not of its temporary neighbour
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_object(target: epath.Path, data: bytes) -> None:
    """What clients of stores raise is of many kinds, few of them an OSError with a number."""
    store, place = _store(target)
    try:
        store.pipe_file(place, data)
    except Exception as error:
        raise OSError(errno.EIO, " ".join(str(error).split())[:200] or type(error).__name__) from error


def _store(path: PathLike) -> tuple[Any, str]:
    """(the file system of a gs:// path, its name there): what takes one request, where a file that is opened takes
    several.
    """
    import fsspec

    return fsspec.url_to_fs(os.fspath(as_path(path)))


def list_objects(folder: PathLike) -> dict[str, tuple[int, str]]:
    """{relative name: (bytes, checksum)} of all objects below a gs:// folder, by one listing."""
    store, place = _store(folder)
    found = store.find(place, detail=True)
    return {
        name.removeprefix(f"{place}/"): (int(about["size"]), str(about.get("crc32c", "")))
        for name, about in sorted(found.items())
    }


def move_folder(source: PathLike, target: PathLike) -> None:
    """Locally a rename, parents made. In a store every object is copied and deleted: not in one piece."""
    here, there = as_path(source), as_path(target)
    if is_local(here):
        there.parent.mkdir(parents=True, exist_ok=True)
        here.rename(there)
        return
    store, place = _store(here)
    store.mv(place, _store(there)[1], recursive=True)


def _write_local(target: epath.Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.fspath(target.parent), prefix=".", suffix=".tmp")
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
    """`write_bytes` of UTF-8 text. The bytes of a file's name that are no UTF-8 are written as escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` of readable JSON; NaN and infinities raise ValueError: other readers cannot read them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: PathLike) -> bytes:
    """What a file or object holds. Raises ValueError for what would be waited for or read for ever: pipes and devices;
    FileNotFoundError, and whatever the client of a store raises.
    """
    file = as_path(path)
    if not is_local(file):
        store, place = _store(file)
        return store.cat_file(place)
    kind = other_kind(os.stat(file).st_mode)
    if kind:
        raise ValueError(f"{file} is not a file but {kind}")
    return file.read_bytes()


def read_json(path: PathLike) -> Any:
    """The value of a JSON file. Raises ValueError that names the file when it is not JSON."""
    file, text = as_path(path), read_bytes(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); it is truncated or not a file of this program") from None
