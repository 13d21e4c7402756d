"""sttts-jax train --config configs/X.py[:args] --workdir DIR [--config.a.b=v]: trains, or goes on where it stopped."""

import ast
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from absl import flags
from etils import epy

from sttts_jax import exit_codes
from sttts_jax.cli import several
from sttts_jax.cli.main import run as run_command
from sttts_jax.processes.config import DistributedConfig

with epy.lazy_imports():  # jax only after the flags are known to be right
    from sttts_jax import api
    from sttts_jax.cli import settings
    from sttts_jax.train import config as configs
    from sttts_jax.train import keys, shipped, signals

USAGE = """usage: sttts-jax train --config NAME|FILE[:ARGUMENTS] --workdir DIR [--config.KEY=VALUE ...]

Trains a model, or goes on where the workdir stands: the same command resumes.

  --config NAME|FILE[:a=1,b=x]  a config that comes with the package ({names}), or a file with get_config(arg)
  --workdir DIR                 where checkpoints, metrics and the tokenizer go
  --config.KEY=VALUE            another value of any key below

SIGTERM, SIGHUP and Ctrl-C save the step and end; a second Ctrl-C ends at once.

Exit codes:"""


def main(argv: list[str]) -> int:
    """Trains. The exit code is 0 only when every step is done."""
    if any(word in ("--help", "-h", "--helpfull") for word in argv):
        print(usage(argv))
        return 0
    config, workdir = _parse(argv)
    found = configs.section("distributed", DistributedConfig, config.distributed.to_dict())
    return several.run("train", argv, found, lambda: _train(config, workdir))


def _train(config: Any, workdir: str) -> int:
    try:
        state = api.train(config, workdir)
    except KeyboardInterrupt:
        _leave(exit_codes.INTERRUPTED)
        raise
    code = exit_code(int(state.step), config)
    _leave(code)
    return code


def exit_code(step: int, config: Any) -> int:
    """Of a run that ended without an error after so many steps."""
    return exit_codes.DONE if step >= config.total_steps else config.checkpoint.preempted_exit_code


def _leave(code: int) -> None:
    """Ends the process here where the compiler still works for a run that was told to stop: it cannot be ended."""
    if signals.left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def usage(argv: list[str]) -> str:
    """The text of --help: what the command takes, the arguments of the config if one is named, every key."""
    width = min(shutil.get_terminal_size().columns, 120)
    names = ", ".join(shipped.shipped_configs())
    lines = [*_wrapped(USAGE.format(names=names), width)]
    for code, meaning in exit_codes.table():
        lines += textwrap.wrap(f"  {code:<9}{meaning}", width, subsequent_indent=" " * 11)
    words = settings.with_config_path(argv)
    for path in [word.partition("=")[2].partition(":")[0] for word in words if word.startswith("--config=")]:
        text = ast.get_docstring(ast.parse(Path(path).read_text())) or "has no description"
        lines += ["", f"{path}:", "", textwrap.indent(text, "  ")]
    for name, about, found in keys.sections():
        lines += ["", *textwrap.wrap(f"{name}: {about}" if name else about, width)]
        for key in found:
            lines.append(f"  --config.{name}{'.' if name else ''}{key.name}={_shown(key.default)}")
            lines += textwrap.wrap(key.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text; what is too long goes on below the second column."""
    lines = []
    for line in text.splitlines():
        indent = " " * 32 if line.startswith("  -") else ""
        lines += textwrap.wrap(line, width, subsequent_indent=indent) or [""]
    return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def _parse(argv: list[str]) -> tuple[Any, str]:
    values = settings.read_flags("train", argv, _define)
    if values.config is None or not values.workdir:
        raise ValueError("--config NAME|FILE and --workdir DIR are both needed; --help lists all settings")
    return values.config, values.workdir


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the tokenizer go", flag_values=values)


if __name__ == "__main__":
    sys.exit(run_command("train", main))
