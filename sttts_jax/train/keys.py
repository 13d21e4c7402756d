"""The keys of a config for people: defaults and meanings, as the docstrings of the sections list them."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sttts_jax.train.config import SECTIONS, RunConfig, defaults


class Key(NamedTuple):
    """One key of a section."""

    name: str
    default: Any
    meaning: str


def sections() -> Iterator[tuple[str, str, list[Key]]]:
    """(name, what it is about, keys in the order of the dataclass); first the keys outside of sections, under ''."""
    config = defaults().to_dict()
    run = {name: value for name, value in config.items() if name not in SECTIONS}
    yield "", "The run", _keys(RunConfig, run)
    for name, kind in SECTIONS.items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        yield name, first, _keys(kind, config[name])


def _keys(kind: type, values: dict[str, Any]) -> list[Key]:
    """Raises KeyError for a key without a meaning."""
    texts = meanings(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name in values]
    return [Key(name, values[name], texts[name]) for name in names]


def meanings(kind: type) -> dict[str, str]:
    """Key -> meaning, as the docstring of a section lists them: `name    meaning`, going on in indented lines."""
    found: dict[str, str] = {}
    key = None
    for line in (inspect.getdoc(kind) or "").splitlines():
        starts = re.fullmatch(r"([a-z]\w*(?:, [a-z]\w*)*)(?: {2,})(\S.*)", line)
        if starts:
            key = starts[1]
            found[key] = starts[2]
        elif key is not None and re.match(r" {4,}\S", line):
            found[key] += " " + line.strip()
        else:
            key = None
    return {name: text for names, text in found.items() for name in names.split(", ")}
