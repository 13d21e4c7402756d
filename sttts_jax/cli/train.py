"""sttts-jax train --config configs/X.py[:args] --workdir DIR [--config.a.b=v]: trains, or goes on where it stopped."""

import sys
from typing import Any

from absl import flags
from etils import epy
from ml_collections import config_flags

from sttts_jax.cli.main import run as run_command

with epy.lazy_imports():  # jax only after the flags are known to be right
    from sttts_jax import api


def main(argv: list[str]) -> int:
    """Trains. Exit code 0 also after a preemption: the same command goes on."""
    config, workdir = _parse(argv)
    api.train(config, workdir)
    return 0


def _parse(argv: list[str]) -> tuple[Any, str]:
    values = flags.FlagValues()
    words = ["sttts-jax train", *argv]  # overrides are looked up here, not in the process's own arguments
    config_flags.DEFINE_config_file("config", None, "the run", lock_config=True, flag_values=values, sys_argv=words)
    flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the tokenizer go", flag_values=values)
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
    if values.config is None or not values.workdir:
        raise ValueError("--config FILE and --workdir DIR are both needed")
    try:
        values.config.to_dict()
    except OSError as error:  # ml_collections tells of a missing file only when the config is used
        raise ValueError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
    return values.config, values.workdir


if __name__ == "__main__":
    sys.exit(run_command("train", main))
