"""sttts-jax bench: measure the speed of this package on this machine, as ratios inside one run.

    sttts-jax bench pruning --scope layer --k 0.3,0.5 --distributions uniform,adversarial --json layer.json
    sttts-jax bench pruning --scope tower --preset molmo2-4b --frames 64 --pass train --json tower.json --plot tower.png

`sttts-jax bench pruning --help` lists the arguments.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttts_jax.cli.main import run

if TYPE_CHECKING:  # these import jax, which --help and wrong arguments do without
    from sttts_jax.bench.pruning import Plan, Scores

PRUNING = """Pruned against unpruned: a ViT block (layer), the blocks after the drop with packing (tail), or the whole
ViT with scorer, bias, selection and packing (tower). Variants are compiled first and then timed in turns; a speed-up is
the median over rounds of the ratio within a round, its bound the ratio of the FLOPs of the very same shapes.

On a machine without accelerator the preset runs at a quarter of its width, unless --full_width or sizes are given.
"""
PLOTS = (".png", ".svg", ".pdf")
SIZES = ("width", "heads", "head_dim", "mlp", "layers")


def main(argv: list[str]) -> int:
    """Prints a table, writes the files. Raises ValueError with one sentence before anything is compiled."""
    args = _parser().parse_args(argv)
    return args.measure(args, "sttts-jax bench " + " ".join(argv))


def _pruning(args: argparse.Namespace, command: str) -> int:
    frames = _lengths(args)
    _check_files(args)
    # Late, so that --help and wrong arguments answer at once.
    import jax
    from rich.console import Console

    from sttts_jax.bench.pruning import measure
    from sttts_jax.bench.record import header, rows_table, write_plot, write_rows
    from sttts_jax.bench.timing import matmul_ceiling

    cpu = jax.default_backend() == "cpu"
    plans, reduced = _plans(args, frames, cpu)
    shapes = plans[0].shapes
    if reduced:
        print(
            f"no accelerator: {args.preset} runs at a quarter of its width ({shapes.vit.width}); "
            "--full_width runs it whole",
            flush=True,
        )
    ceiling = matmul_ceiling(shapes.dtype, 2048 if cpu else 8192)
    rows, baselines = [], []
    for plan in plans:
        pruned, unpruned = measure(plan, ceiling, lambda line: print(line, flush=True))
        rows += pruned
        baselines += unpruned
    head = header(plans[0], reduced=reduced, ceiling=ceiling, command=command)
    if args.json:
        write_rows(args.json, head, rows, baselines)
    title = (
        f"{args.scope} of {args.preset}, width {shapes.vit.width}, {head['dtype']}, {head['device']}, "
        f"{args.rounds} rounds"
    )
    if args.plot:
        write_plot(args.plot, rows, title)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe: whole lines
    console.print(f"\n{title}\n", highlight=False)
    console.print(rows_table(rows, baselines))
    return 0


def _plans(args: argparse.Namespace, frames: Sequence[int], cpu: bool) -> "tuple[list[Plan], bool]":
    """One comparison for every frame count, checked; and whether the width was reduced."""
    from sttts_jax.bench.pruning import Plan
    from sttts_jax.bench.scopes import Shapes
    from sttts_jax.bench.sizes import bench_vit
    from sttts_jax.ops.remat import remat_policy
    from sttts_jax.pruning.config import PACKINGS

    sizes = {name: getattr(args, name) for name in SIZES}
    vit, reduced = bench_vit(args.preset, reduce=cpu and not args.full_width, **sizes)
    if args.scope != "layer" and vit.layers < vit.prune_after + 3:
        raise ValueError(f"{args.preset} has no block after the drop; use --scope layer or a preset with more blocks")
    remat = args.remat or ("none" if args.scope == "layer" else "full")
    remat_policy(remat)
    if args.scope == "layer" and remat != "none":
        raise ValueError(f"--remat {remat} has no effect on one block; leave it out, or use --scope tail or tower")
    packings = _words(args.packing, "--packing", PACKINGS)
    passes = _words(getattr(args, "pass"), "--pass", ("forward", "train"))
    dtype = args.dtype or ("float32" if cpu else "bfloat16")
    fractions = _fractions(args.k)
    plans = []
    for count in frames:
        shapes = Shapes(vit, count, args.batch, _dtype(dtype), remat, args.seed)
        plans.append(Plan(args.scope, shapes, fractions, packings, passes, _scores(args, shapes), args.rounds))
    return plans, reduced


def _scores(args: argparse.Namespace, shapes: Any) -> "Scores":
    """The distributions of the arguments as scores by k; a file is read here, so that a bad one stops the run early."""
    import numpy as np

    from sttts_jax.bench.distributions import DISTRIBUTIONS, FROM_FILE, file_scores, make_scores

    known = (*DISTRIBUTIONS, FROM_FILE) if args.scores else DISTRIBUTIONS
    names = _words(args.distributions or ",".join(known), "--distributions", known)
    size = (shapes.batch, shapes.frames, shapes.vit.cells)
    fixed = {}
    if args.scores:
        if FROM_FILE not in names:
            raise ValueError(f"--scores is given but --distributions leaves it out; add the name {FROM_FILE!r} to them")
        fixed[FROM_FILE] = np.broadcast_to(file_scores(args.scores, shapes.frames, shapes.vit.cell_grid), size)
    return lambda fraction: {
        name: fixed[name] if name in fixed else make_scores(name, args.seed, *size, fraction) for name in names
    }


def _fractions(text: str) -> list[Any]:
    from sttts_jax.pruning.budget import as_fraction

    fractions = [as_fraction(word) for word in _words(text, "--k")]
    if 0 in fractions:
        raise ValueError("--k 0 removes nothing; the unpruned baseline is always measured, so leave it out")
    return list(dict.fromkeys(fractions))


def _dtype(name: str) -> Any:
    import jax.numpy as jnp

    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def _lengths(args: argparse.Namespace) -> list[int]:
    """Frame counts; the other whole numbers are checked on the way."""
    for name in ("batch", "rounds", *SIZES):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    frames = []
    for word in _words(args.frames, "--frames"):
        if not word.isdigit() or int(word) < 2:
            raise ValueError(f"--frames {word} must be a whole number from 2 up: the first frame is never pruned")
        frames.append(int(word))
    return frames


def _check_files(args: argparse.Namespace) -> None:
    if args.plot and Path(args.plot).suffix.lower() not in PLOTS:
        raise ValueError(f"--plot {args.plot} must end in {', '.join(PLOTS)}")
    for name in ("json", "plot"):
        path = getattr(args, name)
        if path and Path(path).is_dir():
            raise ValueError(f"--{name} {path} is a directory; name a file in it")


def _words(text: str, flag: str, known: Sequence[str] = ()) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise ValueError(f"{flag} is empty; give one or more, separated by commas")
    wrong = [word for word in words if known and word not in known]
    if wrong:
        raise ValueError(f"{flag} {wrong[0]} is unknown; choose from {', '.join(known)}")
    return words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    _pruning_parser(commands.add_parser)
    return parser


def _pruning_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add(
        "pruning",
        help="pruned against unpruned: one ViT block, the tail, the whole ViT",
        description=PRUNING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(measure=_pruning)
    parser.add_argument("--scope", required=True, choices=("layer", "tail", "tower"), help="what is timed")
    parser.add_argument("--preset", default="molmo2-4b", help="whose ViT (%(default)s)")
    parser.add_argument("--frames", default="16", metavar="T[,T]", help="of a video (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="videos at once (%(default)s)")
    parser.add_argument("--k", default="0.3,0.5", metavar="K[,K]", help="shares of cells to remove (%(default)s)")
    parser.add_argument(
        "--distributions", metavar="NAME[,NAME]", help="uniform, bursty, scene_cuts, adversarial, scores (default: all)"
    )
    parser.add_argument("--scores", metavar="FILE.npz", help="real scores, of sttts-jax score: distribution `scores`")
    parser.add_argument("--packing", default="staircase", metavar="NAME[,NAME]", help="staircase, bins (%(default)s)")
    parser.add_argument("--pass", default="forward,train", metavar="NAME[,NAME]", help="forward, train (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of every variant (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the compute (default: float32 on CPU, else bfloat16)"
    )
    parser.add_argument("--remat", help="rematerialisation of tail and tower in training (default: full); none: off")
    parser.add_argument("--full_width", action="store_true", help="the preset's own sizes without accelerator, too")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and distributions (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")
    parser.add_argument("--plot", metavar="FILE", help="draw speed-up and share of the bound: .png, .svg or .pdf")


if __name__ == "__main__":
    sys.exit(run("bench", main))
