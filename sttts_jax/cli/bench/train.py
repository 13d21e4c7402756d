"""sttts-jax bench train: whole training steps."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import check_at_least_one
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import train

TEXT = """Whole training steps of a model that prunes against those of the same model that does not, each on rows of
its own length: loss, gradients, clipping and AdamW, the state donated. Weights, pictures and words are noise.

On a machine without accelerator the preset runs at a quarter of its width with a fifth of its blocks, unless
--full_width or widths are given.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench train`."""
    parser = shared.subcommand(subcommands, "train", "whole training steps", TEXT, measure)
    shared.add_comparison(parser, frames="8", k="0.5", rounds=5, whose="sizes")
    shared.add_model(parser)
    parser.set_defaults(distributions="uniform,adversarial")
    parser.add_argument("--videos", type=int, default=1, help="samples in a row (%(default)s)")
    parser.add_argument("--remat", default="full", help="rematerialisation (%(default)s); none: off")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table, writes the files."""
    check_at_least_one(args, "videos")
    model = shared.models(args)
    settings = shared.comparison(args)
    result = train.run(settings, command, shared.say, videos=args.videos, remat=args.remat, **model)
    result.write(args.json, args.plot)
    result.show()
