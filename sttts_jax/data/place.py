"""Where a source lies, apart from what it holds: a run whose data moved goes on, one with other data does not."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sttts_jax.data.config import Source
from sttts_jax.paths import as_path, is_local

LOG = logging.getLogger("sttts_jax.data")
JSONL = "jsonl:"


def rooted(source: Any) -> Any:
    """A source of a config, (name, weight, split, data_dir) or fewer of them, with whole paths: those of a run's config
    mean the same from any directory.
    """
    if not isinstance(source, list | tuple) or not source or not isinstance(source[0], str):
        return source  # refused where the config is checked
    name, *rest = source
    if name.startswith(JSONL):
        name = JSONL + _whole(name.removeprefix(JSONL))
    return (name, *rest[:2], *map(_whole, rest[2:]))


def _whole(path: Any) -> Any:
    """'~' stays what it is, for whoever reads it."""
    if not isinstance(path, str) or not path or not is_local(path) or path.startswith("~"):
        return path
    return os.fspath(as_path(path))


def without_place(source: Sequence[Any]) -> list[Any]:
    """[name, weight, split] of a source of a config, wherever it lies: of a file the name is its kind alone."""
    known = Source(*source)
    return [JSONL if known.name.startswith(JSONL) else known.name, float(known.weight), known.split]


def identity(source: Source, records: int, fingerprint: str) -> dict[str, Any]:
    """What a saved data position knows of its source, plain JSON. `fingerprint`: of what it holds."""
    return {
        **{"name": source.name, "data_dir": source.data_dir, "split": source.split, "weight": float(source.weight)},
        **{"records": records, "fingerprint": fingerprint},
    }


def check_same_data(saved: Sequence[Any], mine: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError unless a data position that was saved with the identities `saved` goes on with those of this
    run. Files may have moved; a file that was edited in its place is named in a warning.
    """
    if len(saved) != len(mine):
        raise ValueError(f"the saved data position has {len(saved)} sources and this run {len(mine)}; {_WAY_OUT}")
    for old, new in zip(map(_identity, saved), mine, strict=True):
        _check_one(old, new)


_WAY_OUT = "run with the saved ones, or start the data anew in another workdir"


def _check_one(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in ("split", "weight", "records"):
        if old[key] != new[key]:
            raise ValueError(
                f"the saved data position has {key}={old[key]!r} of {old['name']} and this run {new[key]!r} of "
                f"{new['name']}; {_WAY_OUT}"
            )
    if old["fingerprint"] == new["fingerprint"]:
        return
    same_place = all(old[key] in (None, new[key]) for key in ("name", "data_dir"))
    if not same_place and not (old["fingerprint"] is None and _same_name(old["name"], new["name"])):
        raise ValueError(
            f"the saved data position is of other data: {old['name']} was trained on, and {new['name']} holds other "
            f"records; {_WAY_OUT}"
        )
    if old["fingerprint"] is not None:
        LOG.warning("%s was edited since the checkpoint; the run goes on with what it holds now", new["name"])


def _identity(saved: Any) -> Mapping[str, Any]:
    """Of a position that was saved before there were fingerprints, a list."""
    if isinstance(saved, Mapping):
        return saved
    return dict(zip(("name", "split", "weight", "records"), saved, strict=True)) | {
        "fingerprint": None,
        "data_dir": None,
    }


def _same_name(old: str, new: str) -> bool:
    """Whether a name is the other one with its whole path: names of files were saved as they were typed."""
    return old == new or (old.startswith(JSONL) and new.endswith(os.path.normpath("/" + old.removeprefix(JSONL))))
