"""sttts-jax bench pruning: a ViT block, the blocks after the drop, the whole ViT."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import words
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import bound, pruning

TEXT = """Pruned against unpruned: a ViT block (layer), the blocks after the drop with packing (tail), or the whole
ViT with scorer, bias, selection and packing (tower). Variants are compiled first and then timed in turns; a speed-up is
the median over rounds of the ratio within a round, its bound the ratio of the FLOPs of the very same shapes.

On a machine without accelerator the preset runs at a quarter of its width, unless --full_width or sizes are given.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench pruning`."""
    parser = shared.subcommand(subcommands, "pruning", "one ViT block, the tail, the whole ViT", TEXT, measure)
    parser.add_argument("--scope", required=True, choices=("layer", "tail", "tower"), help="what is timed")
    shared.add_comparison(parser, frames="16", k="0.3,0.5", rounds=9, whose="ViT")
    parser.add_argument("--pass", default="forward,train", metavar="NAME[,NAME]", help="forward, train (%(default)s)")
    parser.add_argument("--remat", help="rematerialisation of tail and tower in training (default: full); none: off")
    for name in shared.VIT_SIZES:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table, writes the files."""
    sizes, passes = shared.sizes(args, shared.VIT_SIZES), words(getattr(args, "pass"), "--pass", bound.PASSES)
    settings = shared.comparison(args)
    result = pruning.run(settings, command, shared.say, scope=args.scope, passes=passes, remat=args.remat, sizes=sizes)
    result.write(args.json, args.plot)
    result.show()
