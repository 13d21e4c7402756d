"""sttts-jax bench tpu: a pruned ViT block compiled for a TPU that is not there."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import add_pruned_fraction, check_at_least_one
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import compiled

TEXT = """A ViT block on survivors against one on all frames, both on the Pallas kernels, compiled for a TPU on any
machine (pip install libtpu): the compiler's estimate of seconds, bytes of HBM traffic, temporary memory. Estimates
know nothing of stalls, and for some chips the compiler gives none.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench tpu`."""
    parser = shared.subcommand(subcommands, "tpu", "a ViT block compiled for a TPU, on any machine", TEXT, measure)
    parser.add_argument("--chip", default="v5p", choices=("v5e", "v5p", "v6e"), help="(%(default)s)")
    parser.add_argument("--preset", default="molmo2-4b", help="whose ViT (%(default)s)")
    parser.add_argument("--frames", type=int, default=32, help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="videos at once (%(default)s)")
    add_pruned_fraction(parser, "0.3,0.5", several=True)
    parser.add_argument("--json", metavar="FILE", help="write the rows")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a line a program, writes the file."""
    check_at_least_one(args, "frames", "batch")
    shared.check_files(args)
    fractions = shared.fractions(args.pruned_fraction)
    compiled.run(args.chip, args.preset, args.frames, args.batch, fractions, args.json, command, shared.say)
