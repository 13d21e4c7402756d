"""sttts-jax bench: measure the speed of this package on this machine, as ratios inside one run.

    sttts-jax bench pruning --scope layer --k 0.3,0.5 --distributions uniform,adversarial --json layer.json
    sttts-jax bench train --preset molmo2-4b --frames 64 --videos 2 --text 200 --k 0.3,0.4,0.5 --json train.json
    sttts-jax bench infer --frames 128 --baseline_frames 64 --k 0.5 --what prefill --json infer.json
    sttts-jax bench suite --json suite.json --plot suite.png

`sttts-jax bench WHAT --help` lists the arguments.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sttts_jax.cli.bench import arguments as given
from sttts_jax.cli.bench import data as _bench_data
from sttts_jax.cli.bench import torch as _bench_torch
from sttts_jax.cli.bench import tpu as _bench_tpu
from sttts_jax.cli.main import run

if TYPE_CHECKING:  # these import jax, which --help and wrong arguments do without
    from sttts_jax.bench.pruning import Plan, Row

PRUNING = """Pruned against unpruned: a ViT block (layer), the blocks after the drop with packing (tail), or the whole
ViT with scorer, bias, selection and packing (tower). Variants are compiled first and then timed in turns; a speed-up is
the median over rounds of the ratio within a round, its bound the ratio of the FLOPs of the very same shapes.

On a machine without accelerator the preset runs at a quarter of its width, unless --full_width or sizes are given.
"""
TRAIN = """Whole training steps of a model that prunes against those of the same model that does not, each on rows of
its own length: loss, gradients, clipping and AdamW, the state donated. Weights, pictures and words are noise.

On a machine without accelerator the preset runs at a quarter of its width with a fifth of its blocks, unless
--full_width or widths are given.
"""
INFER = """Prefill (ViT, connector and language model up to the last logits), time to first token (ttft: from a batch on
the host to tokens on the host) and decoding (seconds of one more token in every row), pruned against unpruned. The
bound of decoding, which waits for memory, is the ratio of the bytes that it has to read.

On a machine without accelerator the preset runs at a quarter of its width with a fifth of its blocks, unless
--full_width or widths are given.
"""
SUITE = """Everything that is measured on an accelerator, in one run: a pruned ViT block; training of Molmo2-4B on 64
frames x 2 with 200 and with 2,250 tokens of text a sample; prefill of 128 pruned frames against 64 unpruned ones. The
file is written after every part. What the budget or the device leaves out is listed with the reason. On a machine
without accelerator tiny shapes run in their place.
"""
SIZES = ("width", "heads", "head_dim", "mlp", "layers")


def main(argv: list[str]) -> int:
    """Prints a table, writes the files. Raises ValueError with one sentence before anything is compiled."""
    args = _parser().parse_args(argv)
    # Models that fill a device need all of it; JAX takes three quarters unless told.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    return args.measure(args, "sttts-jax bench " + " ".join(argv))


def _pruning(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "batch", "rounds", *SIZES)
    frames = given.frame_counts(args.frames)
    given.check_files(args)
    # Late, so that --help and wrong arguments answer at once.
    import jax

    from sttts_jax.bench.pruning import measure
    from sttts_jax.bench.record import header
    from sttts_jax.bench.timing import matmul_ceiling

    cpu = jax.default_backend() == "cpu"
    plans, reduced = _pruning_plans(args, frames, cpu)
    shapes = plans[0].shapes
    if reduced:
        _say(
            f"no accelerator: {args.preset} runs at a quarter of its width ({shapes.vit.width}); "
            "--full_width runs it whole"
        )
    ceiling = matmul_ceiling(shapes.dtype, 2048 if cpu else 8192)
    rows, baselines = _together(measure(plan, ceiling, _say) for plan in plans)
    head = header(shapes.vit, **_settings(args, shapes), reduced=reduced, ceiling=ceiling, command=command)
    title = f"{args.scope} of {args.preset}, width {shapes.vit.width}, {_where(head)}, {args.rounds} rounds"
    return _finish(args, head, title, rows, baselines)


def _pruning_plans(args: argparse.Namespace, frames: Sequence[int], cpu: bool) -> "tuple[list[Plan], bool]":
    """One comparison for every frame count, checked; and whether the width was reduced."""
    import jax

    from sttts_jax.bench.pruning import Plan
    from sttts_jax.bench.scopes import Shapes
    from sttts_jax.bench.sizes import bench_vit
    from sttts_jax.ops.attention.kernels import choose_kernels
    from sttts_jax.ops.remat import remat_policy

    sizes = {name: getattr(args, name) for name in SIZES}
    vit, reduced = bench_vit(args.preset, reduce=cpu and not args.full_width, **sizes)
    if args.scope != "layer" and vit.layers < vit.prune_after + 3:
        raise ValueError(f"{args.preset} has no block after the drop; use --scope layer or a preset with more blocks")
    remat = args.remat or ("none" if args.scope == "layer" else "full")
    remat_policy(remat)
    if args.scope == "layer" and remat != "none":
        raise ValueError(f"--remat {remat} has no effect on one block; leave it out, or use --scope tail or tower")
    dtype = given.dtype(args, cpu)
    kernels = choose_kernels(args.attention, jax.default_backend(), dtype, vit.patches)
    packings, fractions = given.packings(args), given.fractions(args.k)
    passes = given.words(getattr(args, "pass"), "--pass", ("forward", "train"))
    plans = []
    for count in frames:
        shapes = Shapes(vit, count, args.batch, dtype, remat, args.seed, kernels)
        scores = given.scores(args, count, vit.cell_grid, args.batch)
        plans.append(Plan(args.scope, shapes, fractions, packings, passes, scores, args.rounds))
    return plans, reduced


def _train(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "batch", "videos", "text", "rounds")
    frames = given.frame_counts(args.frames)
    given.check_files(args)
    import jax

    from sttts_jax.bench.memory import check_state
    from sttts_jax.bench.record import header
    from sttts_jax.bench.timing import matmul_ceiling
    from sttts_jax.bench.train import TrainPlan, measure

    cpu = jax.default_backend() == "cpu"
    vlm, reduced = given.model(args, cpu)
    packings, fractions = given.packings(args), given.fractions(args.k)
    plans = []
    for count in frames:
        load = given.load(args, count, args.videos, vlm, cpu, args.remat)
        scores = given.scores(args, count, vlm.vit.cell_grid, args.batch, args.videos)
        plans.append(TrainPlan(load, fractions, packings, scores, args.rounds))
    load = plans[0].load
    check_state(load)
    ceiling = matmul_ceiling(load.dtype, 2048 if cpu else 8192)
    rows, baselines = _together(measure(plan, ceiling, _say) for plan in plans)
    head = header(vlm, **_settings(args, load), reduced=reduced, ceiling=ceiling, command=command)
    title = f"training step of {args.preset}, {_widths(load)}, {_where(head)}, remat {load.remat}, {args.rounds} rounds"
    return _finish(args, head, title, rows, baselines)


def _infer(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "batch", "text", "tokens", "rounds")
    frames = given.frame_counts(args.frames)
    base = given.frame_counts(args.baseline_frames, "--baseline_frames") if args.baseline_frames else frames
    if len(base) not in (1, len(frames)):
        raise ValueError(f"--baseline_frames {args.baseline_frames} must be one number, or one for each of --frames")
    given.check_files(args)
    import jax

    from sttts_jax.bench.infer import WHATS, InferPlan, measure
    from sttts_jax.bench.record import header
    from sttts_jax.bench.timing import matmul_ceiling

    cpu = jax.default_backend() == "cpu"
    whats = given.words(args.what, "--what", WHATS)
    vlm, reduced = given.model(args, cpu)
    packings, fractions = given.packings(args), given.fractions(args.k)
    plans = []
    for count, other in zip(frames, base if len(base) > 1 else base * len(frames), strict=True):
        load, unpruned = (given.load(args, n, 1, vlm, cpu, "none") for n in (count, other))
        scores = given.scores(args, count, vlm.vit.cell_grid, args.batch)
        plans.append(InferPlan(unpruned, load, fractions, packings, whats, args.tokens, scores, args.rounds))
    load = plans[0].load
    ceiling = matmul_ceiling(load.dtype, 2048 if cpu else 8192)
    rows, baselines = _together(measure(plan, ceiling, _say) for plan in plans)
    head = header(vlm, **_settings(args, load), reduced=reduced, ceiling=ceiling, command=command)
    title = f"inference of {args.preset}, {_widths(load)}, {_where(head)}, {args.rounds} rounds"
    return _finish(args, head, title, rows, baselines)


def _suite(args: argparse.Namespace, command: str) -> int:
    given.check_positive(args, "budget_s")
    given.check_files(args)
    fractions = given.fractions(args.k)
    from sttts_jax.bench.suite import run_suite

    record = run_suite(fractions, args.budget_s, args.json, command, _say)
    title = f"suite on {record.head['device']}, {record.head['dtype']}"
    if args.plot and record.rows:
        from sttts_jax.bench.record import write_plot

        write_plot(args.plot, record.rows, title)
    _print_table(title, record.rows, record.baselines)
    for line in record.lines():
        _say(line)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _settings(args: argparse.Namespace, held: Any) -> dict[str, Any]:
    return {
        "dtype": held.dtype,
        "batch": args.batch,
        "seed": args.seed,
        "rounds": args.rounds,
        "remat": held.remat,
        "attention": held.attention,
    }


def _where(head: dict[str, Any]) -> str:
    return f"{head['dtype']}, {head['device']}"


def _widths(load: Any) -> str:
    vit, llm = load.vlm.vit, load.vlm.llm
    return f"ViT {vit.width} wide with {vit.layers} blocks, language model {llm.width} with {llm.layers}"


def _together(parts: Any) -> "tuple[list[Any], list[Any]]":
    """(all rows, all baselines) of several comparisons."""
    rows, baselines = [], []
    for pruned, unpruned in parts:
        rows += pruned
        baselines += unpruned
    return rows, baselines


def _finish(
    args: argparse.Namespace, head: dict[str, Any], title: str, rows: "list[Row]", baselines: "list[Row]"
) -> int:
    from sttts_jax.bench.record import write_plot, write_rows

    if args.json:
        write_rows(args.json, head, rows, baselines)
    if args.plot:
        write_plot(args.plot, rows, title)
    _print_table(title, rows, baselines)
    return 0


def _print_table(title: str, rows: "Sequence[Row]", baselines: "Sequence[Row]") -> None:
    from rich.console import Console

    from sttts_jax.bench.record import rows_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe: whole lines
    console.print(f"\n{title}\n", highlight=False)
    console.print(rows_table(rows, baselines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_subparsers(required=True, metavar="WHAT").add_parser
    _pruning_parser(_command(add, "pruning", "one ViT block, the tail, the whole ViT", PRUNING, _pruning))
    _train_parser(_command(add, "train", "whole training steps", TRAIN, _train))
    _infer_parser(_command(add, "infer", "prefill, time to first token, decoding", INFER, _infer))
    _suite_parser(_command(add, "suite", "everything for an accelerator, in one run", SUITE, _suite))
    _bench_data.add(add)
    _bench_torch.add(add)
    _bench_tpu.add(add)
    return parser


def _command(add: given.Add, name: str, line: str, text: str, measure: Callable[..., int]) -> argparse.ArgumentParser:
    parser = add(name, help=line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(measure=measure)
    return parser


def _pruning_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scope", required=True, choices=("layer", "tail", "tower"), help="what is timed")
    given.add_comparison(parser, frames="16", k="0.3,0.5", rounds=9, whose="ViT")
    parser.add_argument("--pass", default="forward,train", metavar="NAME[,NAME]", help="forward, train (%(default)s)")
    parser.add_argument("--remat", help="rematerialisation of tail and tower in training (default: full); none: off")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, help="instead of the preset's")


def _train_parser(parser: argparse.ArgumentParser) -> None:
    given.add_comparison(parser, frames="8", k="0.5", rounds=5, whose="sizes")
    given.add_model(parser)
    parser.set_defaults(distributions="uniform,adversarial")
    parser.add_argument("--videos", type=int, default=1, help="samples in a row (%(default)s)")
    parser.add_argument("--remat", default="full", help="rematerialisation (%(default)s); none: off")


def _infer_parser(parser: argparse.ArgumentParser) -> None:
    given.add_comparison(parser, frames="8", k="0.5", rounds=9, whose="sizes")
    given.add_model(parser)
    parser.set_defaults(distributions="uniform")
    parser.add_argument("--baseline_frames", metavar="T[,T]", help="of the unpruned model (default: as --frames)")
    parser.add_argument("--what", default="prefill,ttft,decode", metavar="NAME[,NAME]", help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="new ones that decoding makes in a row (%(default)s)")


def _suite_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget_s", type=float, default=600.0, help="seconds that it may take (%(default)g)")
    parser.add_argument("--k", default="0.5,0.3,0.4", metavar="K[,K]", help="shares, first things first (%(default)s)")
    given.add_files(parser)


if __name__ == "__main__":
    sys.exit(run("bench", main))
