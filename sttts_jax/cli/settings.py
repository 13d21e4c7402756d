"""Settings of a config on the command line that ml_collections cannot take: None, and sizes that no file has set."""

import ast
import re
from typing import Any, NamedTuple

import ml_collections

from sttts_jax.train.config import SECTIONS
from sttts_jax.train.kinds import field_kinds

OVERRIDES = "model.overrides."


class Setting(NamedTuple):
    """A key such as "data.max_fps", and what it is set to."""

    key: str
    value: Any


def take_settings(words: list[str]) -> tuple[list[str], list[Setting]]:
    """(the words that are left, what `apply_settings` is to set).

    Taken are --config.KEY=None where None is a value of that key, and --config.model.overrides.PART.FIELD=VALUE; as
    everywhere, the value may be the next word. Raises ValueError where it is missing.
    """
    left, taken, rest = list[str](), list[Setting](), list(words)
    while rest:
        word = rest.pop(0)
        found = re.fullmatch(r"--?config\.([\w.]+)(?:=(.*))?", word, re.DOTALL)
        if found is None or not (found[1].startswith(OVERRIDES) or _is_none(found, rest)):
            left.append(word)
            continue
        if found[2] is None and not rest:
            raise ValueError(f"{word} has no value; write {word}=VALUE")
        taken.append(Setting(found[1], _value(rest.pop(0) if found[2] is None else found[2])))
    return left, taken


def _is_none(found: re.Match[str], rest: list[str]) -> bool:
    text = found[2] if found[2] is not None else (rest or [""])[0]
    return text == "None" and found[1] in _may_be_none()


def _may_be_none() -> set[str]:
    return {
        f"{name}.{field}"
        for name, kind in SECTIONS.items()
        for field, kinds in field_kinds(kind).items()
        if type(None) in kinds
    }


def _value(text: str) -> Any:
    """A number, a truth value, None or a list as Python writes them; anything else is a text."""
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (SyntaxError, ValueError):
        return text


def apply_settings(config: ml_collections.ConfigDict, settings: list[Setting]) -> None:
    """Sets them in place, the later one where two are of one key. What they mean is checked with the whole config."""
    for key, value in settings:
        section, _, name = key.partition(".")
        if key.startswith(OVERRIDES):
            section, name, value = "model", "overrides", _with(config.model.overrides, key, value)
        with config.unlocked():
            config[section][name] = value


def _with(overrides: ml_collections.ConfigDict, key: str, value: Any) -> ml_collections.ConfigDict:
    """The overrides with one more size; a part, or llm.yarn, that was none becomes one."""
    tree = overrides.to_dict()
    *parts, field = key.removeprefix(OVERRIDES).split(".")
    place = tree
    for part in parts:
        if not isinstance(place.get(part), dict):
            place[part] = {}
        place = place[part]
    place[field] = value
    return ml_collections.ConfigDict(tree)
