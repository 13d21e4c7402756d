"""Where in an OCDBT database, which Orbax keeps the arrays of a tree in, the bytes of a chunk lie."""

from typing import Any

import tensorstore as ts
from etils import epath

from sttts_jax.paths import is_local

_ARRAY = "/zarr.json"  # where the metadata of one lies, behind its name


def base_store(folder: epath.Path) -> Any:
    """The spec of the plain files below a folder."""
    return {"driver": "file", "path": f"{folder}/"} if is_local(folder) else f"{folder}/"


def stored_arrays(folder: epath.Path) -> list[str]:
    """The keys that zarr arrays are kept under, such as "w.kernel". Raises ValueError where the database is damaged."""
    keys = ts.KvStore.open({"driver": "ocdbt", "base": base_store(folder)}).result().list().result()
    return [key.decode().removesuffix(_ARRAY) for key in keys if key.decode().endswith(_ARRAY)]


def file_of(folder: epath.Path, key: str) -> str:
    """The file, relative to the database's folder, that holds the value of a key such as 'w/c/0/0'; '' if none does."""
    base = ts.KvStore.open(base_store(folder)).result()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"]["location"]
    place = _place(base, root, key.encode(), b"")
    database, _, rest = place.removeprefix("value:").partition(":")  # 'value:ocdbt.process_0/:d/NAME:first byte:bytes'
    return database + rest.rsplit(":", 2)[0]


def _place(base: ts.KvStore, node: str, key: bytes, prefix: bytes) -> str:
    """Looks through the tree of nodes below one."""
    content = ts.ocdbt.dump(base, node=node).result()
    for entry in content["entries"]:
        if "location" in entry:
            found = _place(base, entry["location"], key, prefix + entry.get("subtree_common_prefix", b""))
        else:
            found = entry.get("indirect_value", "") if prefix + entry["key"] == key else ""
        if found:
            return found
    return ""
