"""sttts-jax bench torch: our unpruned forward pass against transformers' Molmo2 on the same CPU."""

import argparse
from typing import TYPE_CHECKING, Any

from sttts_jax.cli.bench import arguments as given

if TYPE_CHECKING:
    from sttts_jax.bench.against_torch import Row

TORCH = """Our unpruned forward pass against transformers' own Molmo2 on the same CPU: float32, the same weights,
frames, tokens and threads. Parts: vit (patches to features), connector, llm (embedded row to the logits of its last
token), whole (patches and tokens to those logits). Both take turns; a ratio is torch's seconds over ours in a round.
Needs torch and transformers: pip install "sttts-jax[parity]".

The preset runs at a quarter of its width with a fifth of its blocks, unless --full_width or widths are given.
"""


def add(add_parser: given.Add) -> None:
    """The parser of `bench torch`."""
    parser = add_parser(
        "torch",
        help="the unpruned forward pass against PyTorch's, on the CPU",
        description=TORCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(measure=_torch)
    parser.add_argument("--preset", default="molmo2-4b", help="whose sizes (%(default)s)")
    parser.add_argument("--frames", default="8", metavar="T[,T]", help="of a video (%(default)s)")
    given.add_model(parser)
    parser.add_argument("--full_width", action="store_true", help="the preset's own sizes; mind the memory")
    parser.add_argument("--what", default="vit,connector,llm,whole", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--torch_attention", default="sdpa,eager", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--attention", default="auto", help="our kernels by name (%(default)s: those of the platform)")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")


def _torch(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "text", "rounds")
    frames = given.frame_counts(args.frames)
    args.plot = None
    given.check_files(args)
    from sttts_jax.bench.torch_reference import ATTENTIONS, import_torch

    attentions = given.words(args.torch_attention, "--torch_attention", ATTENTIONS)
    import_torch()  # says what to install, before anything is compiled
    import jax

    from sttts_jax.bench import against_torch
    from sttts_jax.ops.attention.kernels import choose_kernels

    if jax.default_backend() != "cpu":
        raise ValueError("bench torch compares two CPU programs; run it with JAX_PLATFORMS=cpu")
    parts = given.words(args.what, "--what", against_torch.PARTS)
    cfg, reduced = given.model(args, cpu=True)
    kernels = choose_kernels(args.attention, "cpu", "float32", cfg.vit.patches)
    rows: list[Row] = []
    for count in frames:
        case = against_torch.Case(args.preset, cfg, count, args.text, kernels, args.seed)
        rows += against_torch.measure(case, attentions, args.rounds, lambda line: print(line, flush=True), parts)
    head = against_torch.header(
        cfg, command, attention=kernels, reduced=reduced, rounds=args.rounds, seed=args.seed, text=args.text
    )
    if args.json:
        from sttts_jax.paths import write_json

        write_json(args.json, {**head, "rows": [row.as_json() for row in rows]})
    _print(head, rows)
    return 0


def _print(head: dict[str, Any], rows: "list[Row]") -> None:
    from rich.console import Console

    from sttts_jax.bench.against_torch import rows_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe: whole lines
    versions = head["versions"]
    title = f"float32, {head['threads']} threads, torch {versions['torch']}, transformers {versions['transformers']}"
    console.print(f"\n{title}\n", highlight=False)
    console.print(rows_table(rows))
