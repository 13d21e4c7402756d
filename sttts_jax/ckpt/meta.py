"""The `meta` of a checkpoint: plain JSON that says what the arrays are, and the check that a run continues itself."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sttts_jax.data.decode_limits import USUAL_LIMITS
from sttts_jax.data.place import without_place
from sttts_jax.text_table import text_table
from sttts_jax.trees import flatten_mapping

FORMAT_VERSION = 1

# Keys that configs of earlier versions lack, with what stands for them.
LATER_KEYS = {f"data.{name}": value for name, value in dataclasses.asdict(USUAL_LIMITS).items()}

# Config keys and sections that leave the run's mathematics alone, so that a resume may change them.
FREE_KEYS = (
    "checkpoint",
    "compile_cache",
    "data.bad_share",
    "data.cache",
    "data.prefetch",
    "data.threads",
    "distributed",
    "evaluation",
    "log",
    "mesh",
    "profile",
    "watchdog",
    "workdir",
)


class ConfigMismatch(ValueError):
    """The run directory belongs to a run with another config."""


class FormatMismatch(ValueError):
    """Another version of the program wrote the checkpoint."""


def build_meta(
    *,
    step: int,
    config: Mapping[str, Any],
    data_layout: Mapping[str, int],
    counters: Mapping[str, Any],
    fresh: Sequence[str] = (),
    tokenizer: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The dict to save as `meta`. `counters`: skipped steps, clock totals, host state. `fresh`: names of the parameters
    that were drawn at random and never trained. `tokenizer`: see `ckpt.content.tokenizer_digests`.

    Raises ValueError when something in it is not plain JSON (a numpy scalar, a NaN, a tuple key).
    """
    meta = {
        "format_version": FORMAT_VERSION,
        "step": int(step),
        "config": json.dumps(_plain(config), sort_keys=True),
        "data_layout": dict(data_layout),
        "counters": dict(counters),
        **({"fresh": list(fresh)} if fresh else {}),
        **({"tokenizer": dict(tokenizer)} if tokenizer else {}),
    }
    try:
        json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint meta must be plain JSON ({error}); convert arrays and numpy scalars") from None
    return meta


def _plain(config: Any) -> Any:
    """ConfigDicts, tuples and nested mappings as what JSON gives back."""
    return json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config, default=str))


def check_version(meta: Mapping[str, Any], where: Any) -> None:
    """Raises FormatMismatch when the checkpoint is in a format that this program does not read."""
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatMismatch(
            f"{where}: checkpoint format {version}, but this program reads format {FORMAT_VERSION}; "
            "use the version of the program that wrote it"
        )


def saved_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the run that wrote the checkpoint, as nested dicts."""
    return json.loads(meta["config"])


def fresh_leaves(meta: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that were never trained, where those who wrote the checkpoint knew."""
    return list(meta.get("fresh", ()))


def check_config(meta: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ConfigMismatch, with a table of keys, unless `config` continues the run that wrote `meta`.

    Everything that can change the run's numbers must be equal: model, pruning, data, batch, seeds, loss, optimizer
    and also the number of steps, which is in the learning rate. Free is what is in FREE_KEYS: when to
    save, evaluate, log and profile, deadlines, how processes meet, and the mesh, which changes sums only by rounding;
    also how data is loaded, and where it lies: its saved position tells whether it is the same.
    """

    def checked(tree: Mapping[str, Any]) -> dict[str, Any]:
        flat = flatten_mapping(tree)
        if "data.sources" in flat:
            flat["data.sources"] = [without_place(source) for source in flat["data.sources"]]
        return {key: value for key, value in flat.items() if not {key, key.split(".")[0]} & set(FREE_KEYS)}

    old, new = checked(saved_config(meta)), checked(_plain(config))
    old = {key: value for key, value in LATER_KEYS.items() if key in new} | old
    absent = object()
    rows = [
        (key, _show(old.get(key, absent), absent), _show(new.get(key, absent), absent))
        for key in sorted(old | new)
        if old.get(key, absent) != new.get(key, absent)
    ]
    if rows:
        raise ConfigMismatch(
            f"this run directory was made with another config ({len(rows)} keys differ); "
            f"use another directory, or the old values:\n{text_table(('key', 'saved', 'now'), rows)}"
        )


def _show(value: Any, absent: object) -> str:
    return "-" if value is absent else json.dumps(value)
