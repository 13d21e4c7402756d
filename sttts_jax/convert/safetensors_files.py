"""safetensors files: what a checkpoint directory holds, reading some rows of a tensor, writing shards as a stream.

    listing = list_tensors(directory)                    # headers only, checked against the sizes of the files
    rows = read_tensor(listing["lm_head.weight"], slice(0, 1000))
    write_shards(folder, specs, lambda name: chunks_of(name))

The layout is that of the safetensors crate: 8 bytes with the header's length, a JSON header, the bytes of the tensors.
The crate's own library is not used: it maps whole files (what was read counts as the process's memory, a file that
shrinks ends it without a word), takes local paths only, and writes from a dict that holds every tensor.
Pickled files (.bin, .pt) are never opened: they can run code.
"""

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from sttts_jax.paths import PathLike, as_path, is_local, read_json, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # as transformers writes by default

_NUMPY: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
FLOATS = tuple(_NUMPY)  # dtypes that parameters are read from and written as
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4}
_SIZES |= {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "U64": 8}
_MAX_HEADER = 32 * 2**20  # bytes; the largest models have some 10,000 tensors a file, of 100 bytes each
_MAX_AXES = 32
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class BadFile(ValueError):
    """A checkpoint file that is damaged, incomplete or of a kind that is not read."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's dtype (as safetensors writes it), shape, file, and the bytes [start, end) it takes there."""

    dtype: str
    shape: tuple[int, ...]
    file: epath.Path
    start: int
    end: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written; dtype one of F32, BF16, F16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _SIZES[self.dtype]


def dtype_name(dtype: Any) -> str:
    """The name that safetensors has for a numpy dtype. Raises ValueError for what is not written."""
    for name, known in _NUMPY.items():
        if np.dtype(dtype) == np.dtype(known):
            return name
    raise ValueError(f"parameters of dtype {np.dtype(dtype)} are not written; use float32, bfloat16 or float16")


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of F32, BF16 or F16. Raises BadFile for any other."""
    if name not in _NUMPY:
        raise BadFile(f"a tensor of dtype {name} is not read as parameters; only {', '.join(FLOATS)} are")
    return np.dtype(_NUMPY[name])


def list_tensors(path: PathLike) -> dict[str, StoredTensor]:
    """{name: where it is} of a checkpoint directory, or of one .safetensors file. Reads headers only.

    A tensor that a header's metadata names as another one, which is how a tied head is stored once, is that one.
    Raises FileNotFoundError when there is no checkpoint, BadFile with one sentence when one cannot be whole.
    """
    root = as_path(path)
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; give a checkpoint directory or a .safetensors file")
    if not root.is_dir():
        if root.suffix != ".safetensors":
            raise BadFile(f"{root.name} is not read: only .safetensors files are, because others can run code")
        return _with_tied(*_list_file(root))
    single, index = root / SINGLE, root / INDEX
    if single.exists() and index.exists():
        raise BadFile(f"{root} holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    if index.exists():
        return _list_index(root)
    if single.exists():
        return _with_tied(*_list_file(single))
    pickles = sorted(file.name for file in root.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise BadFile(f"{root} holds {pickles[0]}, which can run code when read; save the model as safetensors first")
    raise FileNotFoundError(f"{root} holds neither {SINGLE} nor {INDEX}")


def _list_index(root: epath.Path) -> dict[str, StoredTensor]:
    content = read_json(root / INDEX)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise BadFile(f"{root / INDEX} has no weight_map of tensor names to files")
    found: dict[str, StoredTensor] = {}
    tied: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        tensors, others = _list_shard(root, shard)
        _check_places(tensors, shard, places, found)
        found |= tensors
        tied |= others
    missing = next((name for name in places if name not in found), None)
    if missing is not None:
        raise BadFile(f"{INDEX} says that {missing} is in {places[missing]}, but it is not")
    return _with_tied(found, tied)


def _with_tied(found: dict[str, StoredTensor], tied: dict[str, str]) -> dict[str, StoredTensor]:
    """The tensors, and those that are stored as another of them; a header's metadata holds other notes as well."""
    return found | {name: found[kept] for name, kept in tied.items() if kept in found and name not in found}


def _list_shard(root: epath.Path, shard: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
        raise BadFile(f"{root / INDEX} names the file {shard!r}; only .safetensors files beside it are read")
    if not (root / shard).exists():
        raise BadFile(f"{root / INDEX} names {shard}, which is not there; download that shard")
    return _list_file(root / shard)


def _check_places(names: Iterable[str], shard: str, places: dict[str, str], found: dict[str, StoredTensor]) -> None:
    """The index says of every tensor of a shard that it is there, and there alone."""
    for name in names:
        if name not in places:
            raise BadFile(f"{shard} holds {name}, which {INDEX} does not list")
        if name in found:
            raise BadFile(f"{name} is in {found[name].file.name} and again in {shard}")
        if places[name] != shard:
            raise BadFile(f"{INDEX} says that {name} is in {places[name]}, but it is in {shard}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise BadFile(f"'{_shown(next(key for key, count in counts.items() if count > 1))}' occurs twice")
    return dict(pairs)


def _read_header(file: epath.Path) -> tuple[dict[str, Any], int, int]:
    """(entries, where their bytes begin, size of the file)."""
    size = file.stat().length
    if size < 8:  # of a pipe as well, which would be waited for
        raise BadFile(f"{file} is no whole safetensors file: it has {size} bytes")
    with file.open("rb") as handle:
        length = struct.unpack("<Q", handle.read(8))[0]
        if not 2 <= length <= size - 8:
            raise BadFile(f"{file} is no whole safetensors file: its header would have {length} of {size} bytes")
        if length > _MAX_HEADER:
            raise BadFile(f"{file} has a header of {length} bytes, more than {_MAX_HEADER}; save it in more files")
        text = handle.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except BadFile as error:
        raise BadFile(f"{file} has a header in which {error}") from None
    except (ValueError, RecursionError):
        raise BadFile(f"{file} has a header that is not JSON; the file is damaged") from None
    if not isinstance(header, dict):
        raise BadFile(f"{file} has a header that is not a table of tensors; the file is damaged")
    return header, 8 + length, size


def _list_file(file: epath.Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors, {name: the tensor that it is stored as, or any other note})."""
    header, base, size = _read_header(file)
    notes = header.pop("__metadata__", None)
    notes = notes if isinstance(notes, dict) else {}
    found = {name: _entry(file, name, entry, base) for name, entry in header.items()}
    place = base
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != place:
            raise BadFile(
                f"{file}: the bytes of {_shown(name)} do not follow those of the tensor before; the file is damaged"
            )
        place = tensor.end
    if place != size:
        verb = "ends early" if size < place else "is too long"
        raise BadFile(f"{file} {verb}: {size} bytes where its header describes {place}; download it again")
    return found, {name: note for name, note in notes.items() if isinstance(note, str)}


def _entry(file: epath.Path, name: str, entry: Any, base: int) -> StoredTensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise BadFile(f"{file}: {_shown(name)} lacks dtype, shape or data_offsets; the file is damaged") from None
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise BadFile(
            f"{file}: {_shown(name)} has the dtype {_shown(dtype)}, which is not known; save it as F32, BF16 or F16"
        )
    whole = isinstance(shape, list) and len(shape) <= _MAX_AXES
    whole = whole and all(type(x) is int and 0 <= x < 2**63 for x in (*shape, start, end))
    if not whole or end - start != math.prod(shape) * _SIZES[dtype]:
        raise BadFile(
            f"{file}: {_shown(name)} is {dtype}{_shown(shape)}, which does not take bytes {_shown(start)} to "
            f"{_shown(end)}; it is damaged"
        )
    return StoredTensor(dtype, tuple(shape), file, base + start, base + end)


def _shown(value: Any) -> str:
    """Whatever a header holds, short and on one line."""
    text = repr(str(value)[:200])[1:-1]
    return text if len(text) < 200 else f"{text[:200]}.."


def read_tensor(tensor: StoredTensor, rows: slice | None = None) -> np.ndarray:
    """The tensor, or its rows `rows` (no step) along the first axis: exactly those bytes, an array of its own.

    Raises BadFile for a dtype that is not F32, BF16 or F16, and for a file that became shorter.
    """
    dtype, shape, start = numpy_dtype(tensor.dtype), tensor.shape, tensor.start
    if rows is not None:
        first, stop, _ = rows.indices(shape[0])
        start += first * math.prod(shape[1:]) * dtype.itemsize
        shape = (max(stop - first, 0), *shape[1:])
    out = np.empty(shape, dtype)
    view = memoryview(out.reshape(-1).view(np.uint8))
    with tensor.file.open("rb") as handle:
        handle.seek(start)
        _fill(view, handle, tensor.file)
    return out


def _fill(view: memoryview, handle: Any, file: epath.Path) -> None:
    """Reads until `view` is full: a read may give less than was asked for."""
    done = 0
    while done < len(view):
        count = handle.readinto(view[done:])
        if not count:
            raise BadFile(f"{file} ends early: a tensor's bytes are missing; download it again")
        done += count


def plan_shards(specs: Sequence[TensorSpec], max_shard_bytes: int = SHARD_BYTES) -> list[list[TensorSpec]]:
    """Tensors in order, a new shard where the next would pass the limit; a tensor above it has a shard of its own."""
    if max_shard_bytes <= 0:
        raise ValueError(f"shards of {max_shard_bytes} bytes are not possible; give a positive size")
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def write_shards(
    folder: PathLike,
    specs: Sequence[TensorSpec],
    read: Callable[[str], Iterable[np.ndarray]],
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes model.safetensors, or shards and their index, as transformers names them.

    `read(name)` gives the tensor in pieces whose bytes, one after the other, are the tensor; one piece is in memory at
    a time. Raises ValueError for a name that occurs twice, and for pieces that are not the tensor's size or dtype.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} would be written twice")
    root, shards = as_path(folder), plan_shards(specs, max_shard_bytes)
    if len(shards) == 1:
        write_file(root / SINGLE, specs, read)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(root / file, shard, read)
        places |= {spec.name: file for spec in shard}
    total = sum(spec.nbytes for spec in specs)
    write_json(root / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


def write_file(path: PathLike, specs: Sequence[TensorSpec], read: Callable[[str], Iterable[np.ndarray]]) -> None:
    """One safetensors file; `read` as in `write_shards`. The header goes first, wide dtypes before narrow ones."""
    ordered = sorted(specs, key=lambda spec: -_SIZES[spec.dtype])  # so that every tensor is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for spec in ordered:
        offsets = [place, place + spec.nbytes]
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        place += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with as_path(path).open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for spec in ordered:
            _write_tensor(handle, spec, read(spec.name))
        if is_local(path):
            handle.flush()
            os.fsync(handle.fileno())


def _write_tensor(handle: Any, spec: TensorSpec, parts: Iterable[np.ndarray]) -> None:
    done = 0
    for part in parts:
        if dtype_name(part.dtype) != spec.dtype:
            raise ValueError(f"{spec.name} was to be written as {spec.dtype}, but is {part.dtype}")
        flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        handle.write(memoryview(flat))
        done += flat.size
    if done != spec.nbytes:
        raise ValueError(f"{spec.name} {spec.dtype}{list(spec.shape)} has {spec.nbytes} bytes, but {done} were given")
