"""The config of a command line: --config NAME|FILE[:args] and --config.KEY=VALUE.

Beside what ml_collections takes there are None, and sizes that no file has set.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from sttts_jax.train import shipped
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


def read_flags(command: str, argv: list[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """The values of --config, with all settings applied, and of the flags that `define` adds.

    Raises ValueError with one sentence for a key, a value or a word that nothing takes; `config` is None if not given.
    """
    values = flags.FlagValues()
    rest, taken = take_settings(with_config_path(argv))
    words = [f"sttts-jax {command}", *rest]  # overrides are looked up here, not in the process's own arguments
    config_flags.DEFINE_config_file("config", None, "the run", lock_config=True, flag_values=values, sys_argv=words)
    define(values)
    try:
        rest = values(words)[1:]
    except (AttributeError, KeyError) as error:  # ml_collections: the key in quotes, then a line with the nearest one
        inner = error.args[0]
        key, *hint = str(inner.args[0] if isinstance(inner, KeyError) else inner).splitlines()
        raise ValueError(f"the config has no key {key}; {' '.join(hint) or 'see train/config.py'}") from error
    except TypeError as error:
        raise ValueError(f"config: {str(error).splitlines()[0]}") from error
    except flags.IllegalFlagValueError as error:  # holds the traceback of the config file; its last line is the reason
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are given as --config.KEY=VALUE")
    if values.config is not None:
        _complete(values.config, taken)
    return values


def _complete(config: ml_collections.ConfigDict, taken: list[Setting]) -> None:
    try:
        config.to_dict()
    except OSError as error:  # ml_collections tells of a missing file only when the config is used
        raise ValueError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
    apply_settings(config, taken)


def with_config_path(words: list[str]) -> list[str]:
    """The words with --config NAME[:args] as --config=FILE[:args]. Raises ValueError where there is no such file."""
    found, rest = list[str](), list(words)
    while rest:
        word = rest.pop(0)
        flag, equal, value = word.partition("=")
        if flag in ("--config", "-config") and (equal or rest):
            name, colon, arguments = (value if equal else rest.pop(0)).partition(":")
            word = f"--config={shipped.config_file(name)}{colon}{arguments}"
        found.append(word)
    return found


def config_name(values: flags.FlagValues) -> str:
    """What --config named, without its folder: "demo:k=0.5"."""
    file, colon, arguments = config_flags.get_config_filename(values["config"]).partition(":")
    return f"{Path(file).stem}{colon}{arguments}"
