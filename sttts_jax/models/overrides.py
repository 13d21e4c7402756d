"""Model configs told as changes of a preset, as config files and JSON write them; unknown keys are refused."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from sttts_jax.models.config import VlmConfig, YarnConfig
from sttts_jax.models.presets import preset

PARTS = ("vit", "connector", "llm")


def with_overrides(base: VlmConfig, overrides: Mapping[str, Any]) -> VlmConfig:
    """`base` with other sizes: {"vit": {...}, "connector": {...}, "llm": {...}}, as config files and JSON write them.

    Lists become tuples. llm.yarn is None, or a dict of all its fields, or of some where `base` has one.
    Raises ValueError that names an unknown key with the nearest known one, a value of the wrong kind, or what
    `check()` finds.
    """
    check_keys("model.overrides", overrides, PARTS)
    parts = {name: _override(f"model.overrides.{name}", getattr(base, name), overrides[name]) for name in overrides}
    return dataclasses.replace(base, **parts).check()


def overrides_of(cfg: VlmConfig, base: str) -> dict[str, Any]:
    """What `with_overrides(preset(base), ...)` needs to give `cfg`: plain JSON, and only what differs (LoRA aside)."""
    start = preset(base)
    found = {name: _differences(getattr(start, name), getattr(cfg, name)) for name in PARTS}
    return {name: changes for name, changes in found.items() if changes}


def check_keys(where: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises ValueError for the first key of `values` that is none of `names`; the nearest one is named."""
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"known are {', '.join(names)}"
            raise ValueError(f"{where} has no key {key!r}; {hint}")


def _override(where: str, part: Any, changes: Any) -> Any:
    if not isinstance(changes, Mapping):
        raise ValueError(f"{where}={changes!r} must be a mapping of fields to values")
    check_keys(where, changes, [field.name for field in dataclasses.fields(part)])
    values = {}
    for name, value in changes.items():
        values[name] = _yarn(where, part.yarn, value) if name == "yarn" else _plain(value)
        _same_kind(f"{where}.{name}", getattr(part, name), values[name])
    return dataclasses.replace(part, **values)


def _yarn(where: str, base: YarnConfig | None, value: Any) -> YarnConfig | None:
    if value is None:
        return None
    if isinstance(value, Mapping) and base is not None:
        return _override(f"{where}.yarn", base, value)
    names = [field.name for field in dataclasses.fields(YarnConfig)]
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ValueError(f"{where}.yarn must be None or have exactly the keys {', '.join(names)}, got {value!r}")
    return YarnConfig(**{name: _plain(item) for name, item in value.items()})


def _plain(value: Any) -> Any:
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _same_kind(where: str, old: Any, new: Any) -> None:
    """A number given as text, or a whole number as 2.5, would go wrong far from here. Tuples are of whole numbers."""
    if old is None or isinstance(old, YarnConfig):
        return
    fits = isinstance(new, int | float) if isinstance(old, float) else isinstance(new, type(old))
    if isinstance(old, tuple) and fits:
        pair = where.endswith((".grid", ".cell"))
        fits = all(type(item) is int for item in new) and (len(new) == 2 or not pair)
    if not fits or isinstance(new, bool) != isinstance(old, bool):
        raise ValueError(f"{where}={new!r} must be of the kind of {old!r} ({type(old).__name__})")


def _differences(old: Any, new: Any) -> dict[str, Any]:
    changes = {}
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            changes[field.name] = _json(after)
    return changes


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_json(item) for item in value] if isinstance(value, tuple) else value
