"""sttts-jax bench infer: prefill, time to first token, decoding."""

from __future__ import annotations

import argparse

from etils import epy

from sttts_jax.cli.arguments import check_at_least_one, words
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import infer

TEXT = """Prefill (ViT, connector and language model up to the last logits), time to first token (ttft: from a batch on
the host to tokens on the host) and decoding (seconds of one more token in every row), pruned against unpruned. The
bound of decoding, which waits for memory, is the ratio of the bytes that it has to read.

On a machine without accelerator the preset runs at a quarter of its width with a fifth of its blocks, unless
--full_width or widths are given.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench infer`."""
    parser = shared.subcommand(subcommands, "infer", "prefill, time to first token, decoding", TEXT, measure)
    shared.add_comparison(parser, frames="8", k="0.5", rounds=9, whose="sizes")
    shared.add_model(parser)
    parser.set_defaults(distributions="uniform")
    parser.add_argument("--baseline_frames", metavar="T[,T]", help="of the unpruned model (default: as --frames)")
    parser.add_argument("--what", default="prefill,ttft,decode", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="new ones that decoding makes in a row (%(default)s)")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table, writes the files."""
    check_at_least_one(args, "tokens")
    model, whats, frames = shared.models(args), words(args.what, "--what", infer.WHATS), _baseline_frames(args)
    settings = shared.comparison(args)
    result = infer.run(settings, command, shared.say, baseline_frames=frames, whats=whats, tokens=args.tokens, **model)
    result.write(args.json, args.plot)
    result.show()


def _baseline_frames(args: argparse.Namespace) -> list[int]:
    """One for each of --frames."""
    frames = shared.frame_counts(args.frames)
    if not args.baseline_frames:
        return frames
    base = shared.frame_counts(args.baseline_frames, "--baseline_frames")
    if len(base) not in (1, len(frames)):
        raise ValueError(f"--baseline_frames {args.baseline_frames} must be one number, or one for each of --frames")
    return base if len(base) > 1 else base * len(frames)
