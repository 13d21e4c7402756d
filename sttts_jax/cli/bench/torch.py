"""sttts-jax bench torch: our unpruned forward pass against transformers' Molmo2 on the same CPU."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import check_at_least_one, words
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import against_torch, torch_reference

TEXT = """Our unpruned forward pass against transformers' own Molmo2 on the same CPU: float32, the same weights,
frames, tokens and threads. Parts: vit (patches to features), connector, llm (embedded row to the logits of its last
token), whole (patches and tokens to those logits). Both take turns; a ratio is torch's seconds over ours in a round.
Needs torch and transformers: pip install "sttts-jax[parity]".

The preset runs at a quarter of its width with a fifth of its blocks, unless --full_width or widths are given.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench torch`."""
    parser = shared.subcommand(
        subcommands, "torch", "the unpruned forward pass against PyTorch's, on the CPU", TEXT, measure
    )
    parser.add_argument("--preset", default="molmo2-4b", help="whose sizes (%(default)s)")
    parser.add_argument("--frames", default="8", metavar="T[,T]", help="of a video (%(default)s)")
    shared.add_model(parser)
    parser.add_argument("--full_width", action="store_true", help="the preset's own sizes; mind the memory")
    parser.add_argument("--what", default="vit,connector,llm,whole", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--torch_attention", default="sdpa,eager", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--attention", default="auto", help="our kernels by name (%(default)s: those of the platform)")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table, writes the file."""
    check_at_least_one(args, "rounds")
    shared.check_files(args)
    model, frames = shared.models(args), shared.frame_counts(args.frames)
    against_torch.run(
        command,
        shared.say,
        preset=args.preset,
        frames=frames,
        parts=words(args.what, "--what", against_torch.PARTS),
        attentions=words(args.torch_attention, "--torch_attention", torch_reference.ATTENTIONS),
        attention=args.attention,
        rounds=args.rounds,
        seed=args.seed,
        full_width=args.full_width,
        path=args.json,
        **model,
    )
