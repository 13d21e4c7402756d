"""metrics.jsonl: one JSON object a line with `step`, in ascending order across restarts.

A local file is appended, line by line. In an object store nothing can be appended, so lines are held for FLUSH_S at
most and then written as an object of their own, metrics.jsonl.000001 and so on; the next start, and the end of the run,
put them into metrics.jsonl. Readers see all of them.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from sttts_jax.paths import PathLike, as_path, is_local, read_bytes, write_bytes

FLUSH_S = 60.0  # the numbers of so many seconds may be lost with a process, in a store; never those of a saved step


class _Place(Protocol):
    def append(self, line: bytes) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Writes a metrics.jsonl, each line whole or not at all.

    Opening it at `resume_step` n drops the lines after step n, and what is no whole record, such as a line cut by a
    kill; `damaged` counts those.
    """

    def __init__(self, path: PathLike, resume_step: int = 0):
        file = as_path(path)
        found = _lines(file)
        self.damaged = sum(record is None for _, record in found)
        kept = [line for line, record in found if record is not None and record["step"] <= resume_step]
        self._place: _Place = (_LocalFile if is_local(file) else _Objects)(file, kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """One line. NaN and infinities become strings, as JSON has none. Raises ValueError without a step."""
        if "step" not in record:
            raise ValueError(f"a metrics line needs a step, got the keys {sorted(record)}")
        self._place.append(json.dumps(_jsonable(dict(record))).encode() + b"\n")

    def flush(self) -> None:
        """Makes the lines durable."""
        self._place.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._place.close()


class _LocalFile:
    """Begins with `lines`, by one rename; a line is there as soon as it is written."""

    def __init__(self, path: epath.Path, lines: Iterable[bytes]):
        write_bytes(path, _joined(lines))
        self._file = open(os.fspath(path), "ab", buffering=0)  # noqa: SIM115

    def append(self, line: bytes) -> None:
        _append(self._file, line)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


class _Objects:
    """Begins with `lines` in one object. What was in several before is in two for a moment: readers see a line once."""

    def __init__(self, path: epath.Path, lines: Iterable[bytes]):
        self._path, self._held = path, list[bytes]()
        self._flushed, self._number = time.monotonic(), 0
        self._put_together(lines)

    def _put_together(self, lines: Iterable[bytes]) -> None:
        write_bytes(self._path, _joined(lines))
        for part in _parts(self._path):
            part.unlink()

    def append(self, line: bytes) -> None:
        self._held.append(line)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._held:
            write_bytes(self._path.with_name(f"{self._path.name}.{self._number + 1:06d}"), b"".join(self._held))
            self._number, self._held = self._number + 1, []

    def close(self) -> None:
        self.flush()
        self._put_together(line for line, _ in _lines(self._path))


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _append(file: FileIO, data: bytes) -> None:
    """All of it; where that fails, nothing of it stays."""
    size = os.fstat(file.fileno()).st_size
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(size)
        raise


def _parts(path: epath.Path) -> list[epath.Path]:
    """Of a metrics.jsonl in a store, in the order in which they were written."""
    if is_local(path) or not path.parent.exists():
        return []
    name = re.compile(re.escape(path.name) + r"\.\d+")
    return sorted(part for part in path.parent.iterdir() if name.fullmatch(part.name))


def _lines(path: epath.Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The lines that are not empty, each with its record; None for what is none."""
    files = [file for file in (path, *_parts(path)) if file.exists()]
    lines = [line for file in files for line in read_bytes(file).split(b"\n") if line.strip()]
    return [(line, _record(line)) for line in (lines if len(files) < 2 else dict.fromkeys(lines))]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int | float) else None


def read_lines(path: PathLike) -> list[dict[str, Any]]:
    """All whole records of a metrics.jsonl, none where it is not there; NaN and infinities are floats again."""
    records = [record for _, record in _lines(as_path(path)) if record is not None]
    return [
        {key: float(v) if v in ("NaN", "Infinity", "-Infinity") else v for key, v in record.items()}
        for record in records
    ]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return _jsonable(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [_jsonable(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
