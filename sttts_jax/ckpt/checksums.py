"""Checksums of a step: zarr3's codec crc32c in its arrays, a digest of every other file in the record of the step.

The codec's four bytes are made as a chunk is written, by the process that writes it, and compared wherever a chunk is
read: no file is read twice for them. OCDBT's own nodes carry crc32c as well. What is left are small JSON files.
"""

import functools
import hashlib
from importlib.metadata import version
from typing import Any

import tensorstore as ts
from etils import epath
from orbax.checkpoint._src.serialization import tensorstore_utils

from sttts_jax.paths import read_bytes

CRC32C = {"name": "crc32c"}
SHARDED = "sharding_indexed"  # the codec whose inner codecs Orbax's chunks go through


def digest(file: epath.Path) -> str:
    """SHA-256 of a small file, hexadecimal."""
    return hashlib.sha256(read_bytes(file)).hexdigest()


def has_checksums(array: ts.TensorStore) -> bool:
    """Whether the chunks of an open zarr3 array carry crc32c."""
    codec = array.codec
    codecs = [] if codec is None else codec.to_json()["codecs"]
    inner = next((each["configuration"]["codecs"] for each in codecs if each["name"] == SHARDED), codecs)
    return any(each["name"] == CRC32C["name"] for each in inner)


@functools.cache
def add_to_orbax() -> None:
    """From now on every array that Orbax saves has the codec, behind its own.

    Orbax (0.12.5 to 0.12.8) has no option for codecs, so the one function that names them is replaced. Raises
    ValueError where another version has none: arrays without checksums are not written.
    """
    named = getattr(tensorstore_utils, "_build_zarr3_metadata", None)
    if named is None:
        raise ValueError(
            f"orbax-checkpoint {version('orbax-checkpoint')} would save arrays without checksums; install 0.12.5 to "
            "0.12.8"
        )

    def metadata(*args: Any, **kwargs: Any) -> dict[str, Any]:
        made = named(*args, **kwargs)
        (sharded,) = (codec for codec in made["codecs"] if codec["name"] == SHARDED)
        sharded["configuration"]["codecs"].append(CRC32C)
        return made

    tensorstore_utils._build_zarr3_metadata = metadata
