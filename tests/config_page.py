"""docs/config.md, made from the config's own dataclasses: every key with its default and its meaning.

python -m tests.config_page > docs/config.md
"""

from collections.abc import Iterator

from sttts_jax.train.keys import Key, sections

HEAD = """# Config keys

A config file is a Python file with `get_config(arg)` that starts from `sttts_jax.train.config.defaults()` and changes
what it needs. Every key can be set on the command line: `--config.data.rows=16`. A key that does not exist, or a value
that cannot work, is refused before any device is touched. This page is made from the code:
`python -m tests.config_page > docs/config.md`.
"""


def _rows(keys: list[Key]) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key in keys:
        shown = f"`{key.default!r}`".replace("|", "\\|")
        yield f"| `{key.name}` | {shown} | {key.meaning.replace('|', chr(92) + '|')} |"


def config_page() -> str:
    """The whole page."""
    lines = [HEAD]
    for name, about, keys in sections():
        lines += [f"## `{name}`", "", about, "", *_rows(keys), ""] if name else [f"## {about}", "", *_rows(keys), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(config_page(), end="")
