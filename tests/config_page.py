"""docs/config.md, made from the config's own dataclasses: every key with its default and its meaning.

python -m tests.config_page > docs/config.md
"""

import dataclasses
import inspect
import re
from collections.abc import Collection, Iterator
from typing import Any

from sttts_jax.train.config import SECTIONS, RunConfig, defaults

HEAD = """# Config keys

A config file is a Python file with `get_config(arg)` that starts from `sttts_jax.train.config.defaults()` and changes
what it needs. Every key can be set on the command line: `--config.data.rows=16`. A key that does not exist, or a value
that cannot work, is refused before any device is touched. This page is made from the code:
`python -m tests.config_page > docs/config.md`.
"""


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


def _rows(values: dict[str, Any], texts: dict[str, str]) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for name, value in values.items():
        shown = f"`{value!r}`".replace("|", "\\|")
        yield f"| `{name}` | {shown} | {texts[name].replace('|', chr(92) + '|')} |"


def _ordered(kind: type, values: dict[str, Any], left_out: Collection[str] = ()) -> dict[str, Any]:
    """`values` in the order of the dataclass, not of the alphabet."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: values[name] for name in names if name in values and name not in left_out}


def config_page() -> str:
    """The whole page. Raises KeyError for a key without a meaning."""
    config = defaults().to_dict()
    lines = [HEAD, "## The run", "", *_rows(_ordered(RunConfig, config, SECTIONS), meanings(RunConfig))]
    for name, kind in SECTIONS.items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        lines += ["", f"## `{name}`", "", first, "", *_rows(_ordered(kind, config[name]), meanings(kind))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(config_page(), end="")
