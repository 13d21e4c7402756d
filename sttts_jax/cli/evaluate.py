"""sttts-jax evaluate: answer benchmark questions from checkpoints; accuracy with intervals.

    sttts-jax evaluate --workdir runs/demo/scorer --tasks shapes_video_qa
    sttts-jax evaluate --workdir runs/demo/none,runs/demo/scorer --tasks shapes_video_qa --pruned_fraction 0,0.3,0.5 \\
        --report report.html

Needs nothing but the workdirs: config, tokenizer and weights are there. What was measured of the same questions, files,
weights and settings is read from results.json; --overwrite measures again. Tasks: shapes_video_qa, or jsonl:PATH for
your own questions; NAME:SPLIT takes another split.
"""

import argparse
import sys

from etils import epy

from sttts_jax.cli import several
from sttts_jax.cli.arguments import (
    add_distributed,
    add_method,
    add_pruned_fraction,
    add_sampling,
    check_at_least_one,
    check_not_empty,
    distributed_config,
    mesh_axes,
    whole_numbers,
    words,
)
from sttts_jax.cli.main import run

with epy.lazy_imports():
    from sttts_jax import api


def main(argv: list[str]) -> int:
    """Prints one table a task. Raises ValueError or FileNotFoundError with one sentence before anything is compiled."""
    args = _parser().parse_args(argv)
    return several.run("evaluate", argv, distributed_config(args), lambda: _evaluate(args, argv))


def _evaluate(args: argparse.Namespace, argv: list[str]) -> int:
    check_at_least_one(args, "batch", "limit")
    check_not_empty(
        args, "mesh", "pruned_fraction", "max_frames", "frame_buckets", "data_dir", "out", "report", "picture"
    )
    report = None
    if args.report or args.picture:
        report = api.Report(args.report, args.picture, made_by=" ".join(["sttts-jax evaluate", *argv]))
    api.evaluate(
        words(args.workdir, "--workdir"),
        words(args.tasks, "--tasks"),
        method=args.method,
        pruned_fraction=words(args.pruned_fraction, "--pruned_fraction") if args.pruned_fraction else None,
        max_frames=whole_numbers(args.max_frames, "--max_frames") if args.max_frames else None,
        max_fps=args.max_fps,
        max_crops=args.max_crops,
        sampling=args.sampling,
        batch=args.batch,
        mesh=mesh_axes(args.mesh) if args.mesh else None,
        frame_buckets=whole_numbers(args.frame_buckets, "--frame_buckets") if args.frame_buckets else (),
        limit=args.limit,
        seed=args.seed,
        data_dir=args.data_dir,
        out=args.out,
        overwrite=args.overwrite,
        report=report,
        say=lambda line: print(line, flush=True),
        processes=distributed_config(args),
    )
    for what, file in (("report", args.report), ("picture", args.picture)):
        if file:
            print(f"{what}: {file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, metavar="DIR[,DIR]", help="runs to evaluate and compare")
    parser.add_argument(
        "--tasks", required=True, metavar="NAME[,NAME]", help="shapes_video_qa, jsonl:PATH, 'jsonl:PATH:train[90%%:]'"
    )
    add_method(parser)
    add_pruned_fraction(parser, several=True)
    parser.add_argument("--max_frames", metavar="N[,N]", help="(default: as trained)")
    parser.add_argument("--max_fps", type=float, help="frames a second at most (default: as trained)")
    parser.add_argument(
        "--max_crops", type=int, metavar="N", help="most tiles of an image, 0: whole only (default: 24)"
    )
    add_sampling(parser)
    parser.add_argument("--batch", type=int, default=32, help="videos a batch, over all devices (%(default)s)")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N[,AXIS=N]",
        help="of data, fsdp, tensor, sequence; -1 for the rest of the devices (default: data=-1,fsdp=-1)",
    )
    parser.add_argument(
        "--frame_buckets",
        metavar="N[,N]",
        help="frames that rows are made for (default: 8, 16, 32, .. up to --max_frames)",
    )
    parser.add_argument("--limit", type=int, help="ask only the first so many questions of a task")
    parser.add_argument("--seed", type=int, default=0, help="for methods that choose at random (%(default)s)")
    parser.add_argument("--data_dir", help="where built datasets lie (default: where the run found them)")
    parser.add_argument("--out", metavar="DIR", help="for results.json and predictions (default: WORKDIR/eval)")
    parser.add_argument("--overwrite", action="store_true", help="measure again what is in results.json")
    parser.add_argument("--report", metavar="FILE.html", help="write a page that compares the runs, first task")
    parser.add_argument("--picture", metavar="FILE.png", help="write a picture of kept tokens of a run of STTS")
    add_distributed(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run("evaluate", main))
