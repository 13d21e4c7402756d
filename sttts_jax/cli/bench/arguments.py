"""Arguments that the subcommands of bench share: how they are declared, read, and refused in one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epy

from sttts_jax.cli.arguments import add_pruned_fraction, check_at_least_one, words
from sttts_jax.pruning.budget import as_fraction

with epy.lazy_imports():  # with jax, which --help and wrong arguments do without
    from sttts_jax.bench import distributions, settings
    from sttts_jax.pruning import config as pruning

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]

PLOTS = (".png", ".svg", ".pdf")
VIT_SIZES = ("width", "heads", "head_dim", "mlp", "layers")
LLM_SIZES = ("width", "heads", "kv_heads", "head_dim", "mlp", "layers", "vocab")


def subcommand(
    subcommands: Subcommands, name: str, line: str, text: str, measure: Callable[[argparse.Namespace, str], None]
) -> argparse.ArgumentParser:
    """A parser whose `measure` gets the arguments and the command; `line` stands in the list, `text` in its help."""
    parser = subcommands.add_parser(
        name, help=line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(measure=measure)
    return parser


def add_comparison(parser: argparse.ArgumentParser, *, frames: str, k: str, rounds: int, whose: str) -> None:
    """What every comparison of pruned with unpruned shapes asks."""
    parser.add_argument("--preset", default="molmo2-4b", help=f"whose {whose} (%(default)s)")
    parser.add_argument("--frames", default=frames, metavar="T[,T]", help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows at once (%(default)s)")
    add_pruned_fraction(parser, k, several=True)
    parser.add_argument(
        "--distributions", metavar="NAME[,NAME]", help="uniform, bursty, scene_cuts, adversarial, scores (default: all)"
    )
    parser.add_argument("--scores", metavar="FILE.npz", help="real scores, of sttts-jax score: distribution `scores`")
    parser.add_argument("--packing", default="staircase", metavar="NAME[,NAME]", help="staircase, bins (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed turns of every variant (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the compute (default: float32 on CPU, else bfloat16)"
    )
    parser.add_argument("--attention", default="auto", help="kernels by name (%(default)s: those of the platform)")
    parser.add_argument("--full_width", action="store_true", help="the preset's own sizes without accelerator, too")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and distributions (%(default)s)")
    add_files(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """What is left behind."""
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")
    parser.add_argument("--plot", metavar="FILE", help="draw speed-up and share of the bound: .png, .svg or .pdf")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Sizes of a whole model."""
    parser.add_argument("--text", type=int, default=200, help="tokens of a sample that are not cells (%(default)s)")
    for name in VIT_SIZES:
        parser.add_argument(f"--vit_{name}", type=int, help="instead of the preset's")
    for name in LLM_SIZES:
        parser.add_argument(f"--llm_{name}", type=int, help="instead of the preset's")


def comparison(args: argparse.Namespace) -> settings.Settings:
    """What `add_comparison` asked. Raises ValueError for what is wrong by itself."""
    check_at_least_one(args, "batch", "rounds")
    check_files(args)
    return settings.Settings(
        preset=args.preset,
        frames=frame_counts(args.frames),
        batch=args.batch,
        fractions=fractions(args.pruned_fraction),
        packings=words(args.packing, "--packing", pruning.PACKINGS),
        distributions=_distributions(args),
        scores=args.scores,
        rounds=args.rounds,
        dtype=args.dtype,
        attention=args.attention,
        full_width=args.full_width,
        seed=args.seed,
    )


def _distributions(args: argparse.Namespace) -> list[str]:
    real = distributions.FROM_FILE
    known = (*distributions.DISTRIBUTIONS, real) if args.scores else distributions.DISTRIBUTIONS
    names = words(args.distributions or ",".join(known), "--distributions", known)
    if args.scores and real not in names:
        raise ValueError(f"--scores is given but --distributions leaves it out; add the name {real!r} to them")
    return names


def models(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_model` asked: {"text": tokens, "vit": its given sizes, "llm": likewise}."""
    check_at_least_one(args, "text")
    return {"text": args.text, "vit": sizes(args, VIT_SIZES, "vit_"), "llm": sizes(args, LLM_SIZES, "llm_")}


def sizes(args: argparse.Namespace, names: Sequence[str], prefix: str = "") -> dict[str, int]:
    """{name: number} of the sizes that were given. Raises ValueError for one below 1."""
    check_at_least_one(args, *(prefix + name for name in names))
    given = {name: getattr(args, prefix + name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def fractions(text: str) -> list[Fraction]:
    """The shares of --pruned_fraction, exact."""
    found = [as_fraction(word, "--pruned_fraction") for word in words(text, "--pruned_fraction")]
    if 0 in found:
        raise ValueError("--pruned_fraction 0 removes nothing; the unpruned baseline is always measured: leave it out")
    return list(dict.fromkeys(found))


def frame_counts(text: str, flag: str = "--frames") -> list[int]:
    """Lengths of videos."""
    frames = []
    for word in words(text, flag):
        if not word.isdigit() or int(word) < 2:
            raise ValueError(f"{flag} {word} must be a whole number from 2 up: the first frame is never pruned")
        frames.append(int(word))
    return frames


def check_files(args: argparse.Namespace) -> None:
    """Raises ValueError for a --json or --plot that cannot be written, before anything is measured."""
    plot = getattr(args, "plot", None)
    if plot and Path(plot).suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {plot} must end in {', '.join(PLOTS)}")
    for name, path in (("json", args.json), ("plot", plot)):
        if path and Path(path).is_dir():
            raise ValueError(f"--{name} {path} is a directory; name a file in it")


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)
