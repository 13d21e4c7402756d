"""Values of a config against the types of its fields: a config file, JSON or a command line may give anything."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

_WHAT = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    tuple: "a list of texts such as ('a', 'b')",
    types.NoneType: "None",
}


def check_kinds(where: str, section: Any) -> None:
    """Raises ValueError for the first field of a dataclass whose value is not of its type; NaN is no number.

    where: what the names begin with, such as "data.". Fields of types that are none of the above are left alone.
    """
    for name, kinds in field_kinds(type(section)).items():
        value = getattr(section, name)
        if kinds and not any(_is(value, kind) for kind in kinds):
            raise ValueError(f"{where}{name}={value!r} must be {' or '.join(_WHAT[kind] for kind in kinds)}")


def field_kinds(section: type) -> dict[str, tuple[type, ...]]:
    """{field: its plain types}, several of `float | None`; () of what is not plain."""
    hints = typing.get_type_hints(section)
    return {field.name: _kinds(hints[field.name]) for field in dataclasses.fields(section)}


def _kinds(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) is types.UnionType:
        parts = [_kinds(part) for part in typing.get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    if hint == tuple[str, ...]:
        return (tuple,)
    return (hint,) if hint in _WHAT else ()


def _is(value: Any, kind: type) -> bool:
    if kind is tuple:
        return isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def check_mapping(where: str, value: Any) -> None:
    """Raises ValueError for a section that is none."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}={value!r} must be a section of keys and values")


def check_seed(seed: Any) -> None:
    """Raises ValueError for what cannot seed a key of JAX."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed!r} must be a whole number of at most 64 bits; give a smaller one")
