"""sttts-jax train --config configs/X.py[:args] --workdir DIR [--config.a.b=v]: trains, or goes on where it stopped."""

import sys
from typing import Any

from absl import flags

from sttts_jax.cli.main import run as run_command


def main(argv: list[str]) -> int:
    """Trains. Exit code 0 also after a preemption: the same command goes on."""
    config, workdir = _parse(argv)
    from sttts_jax.train.start import start  # jax only after the flags are known to be right

    start(config, workdir)
    return 0


def _parse(argv: list[str]) -> tuple[Any, str]:
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "the run", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the tokenizer go", flag_values=values)
    try:
        rest = values(["sttts-jax train", *argv])[1:]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config: {str(error).splitlines()[0]}") from error
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are given as --config.KEY=VALUE")
    if values.config is None or not values.workdir:
        raise ValueError("--config FILE and --workdir DIR are both needed")
    return values.config, values.workdir


if __name__ == "__main__":
    sys.exit(run_command("train", main))
