"""sttts-jax bench suite: everything for an accelerator, in one run."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import add_pruned_fraction, check_at_least_one
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import suite

TEXT = """Everything that is measured on an accelerator, in one run: a pruned ViT block; training of Molmo2-4B on 64
frames x 2 with 200 and with 2,250 tokens of text a sample; prefill of 128 pruned frames against 64 unpruned ones. The
file is written after every part. What the budget or the device leaves out is listed with the reason. On a machine
without accelerator tiny shapes run in their place.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench suite`."""
    parser = shared.subcommand(subcommands, "suite", "everything for an accelerator, in one run", TEXT, measure)
    parser.add_argument("--budget_s", type=float, default=600.0, help="seconds that it may take (%(default)g)")
    add_pruned_fraction(parser, "0.5,0.3,0.4", several=True)
    shared.add_files(parser)


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table and what was reached, writes the files."""
    check_at_least_one(args, "budget_s")
    shared.check_files(args)
    record = suite.run_suite(shared.fractions(args.pruned_fraction), args.budget_s, args.json, command, shared.say)
    record.finish(args.plot, shared.say)
