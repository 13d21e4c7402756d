"""sttts-jax bench: measure the speed of this package on this machine, as ratios inside one run.

    sttts-jax bench pruning --scope layer --k 0.3,0.5 --distributions uniform,adversarial --json layer.json
    sttts-jax bench train --preset molmo2-4b --frames 64 --videos 2 --text 200 --k 0.3,0.4,0.5 --json train.json
    sttts-jax bench infer --frames 128 --baseline_frames 64 --k 0.5 --what prefill --json infer.json
    sttts-jax bench suite --json suite.json --plot suite.png

`sttts-jax bench WHAT --help` lists the arguments.
"""

import argparse
import os

from etils import epy

from sttts_jax.cli import several
from sttts_jax.cli.arguments import add_distributed, distributed_config
from sttts_jax.cli.bench import data, infer, pruning, suite, torch, tpu, train
from sttts_jax.processes.config import DistributedConfig

with epy.lazy_imports():
    from sttts_jax import distributed


def main(argv: list[str]) -> int:
    """Prints a table, writes the files. Raises ValueError with one sentence before anything is compiled."""
    args = parser().parse_args(argv)
    # Models that fill a device need all of it; JAX takes three quarters unless told.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    config = distributed_config(args)
    return several.run("bench", argv, config, lambda: _measure(args, argv, config))


def _measure(args: argparse.Namespace, argv: list[str], config: DistributedConfig) -> int:
    with distributed.joined(config):
        args.measure(args, "sttts-jax bench " + " ".join(argv))
    return 0


def parser() -> argparse.ArgumentParser:
    """One subcommand a file."""
    whole = argparse.ArgumentParser(
        prog="sttts-jax bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subcommands = whole.add_subparsers(required=True, metavar="WHAT")
    for subcommand in (pruning, train, infer, suite, data, torch, tpu):
        subcommand.add(subcommands)
    for command in subcommands.choices.values():
        add_distributed(command)
    return whole
