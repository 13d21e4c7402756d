"""sttts-jax bench data: how fast the input pipeline makes rows."""

from __future__ import annotations

import argparse
import dataclasses

from etils import epy

from sttts_jax.cli.arguments import add_pruned_fraction, add_sampling, check_at_least_one, words
from sttts_jax.cli.bench import arguments as shared

with epy.lazy_imports():
    from sttts_jax.bench import loading

TEXT = """How fast the input pipeline makes rows, and what share of the work every stage is: read, decode (frames at
their true times), resize, prompt, pack, batch. DATA is a dataset's name (shapes_video_qa), a JSONL file, or a folder of
video files. --step_s says whether the pipeline keeps training steps of that many seconds fed.
"""


def add(subcommands: shared.Subcommands) -> None:
    """The parser of `bench data`."""
    line = "the input pipeline: rows a second by threads, and its stages"
    parser = shared.subcommand(subcommands, "data", line, TEXT, measure)
    parser.add_argument("data", metavar="DATA", help="a dataset's name, FILE.jsonl or a folder of video files")
    parser.add_argument("--split", default="train", help="of a dataset (%(default)s)")
    parser.add_argument("--data_dir", help="where built datasets lie (default: as sttts-jax data)")
    parser.add_argument("--frames", type=int, default=8, help="at most, of a video (%(default)s)")
    parser.add_argument("--max_fps", type=float, default=2.0, help="frames a second at most (%(default)s)")
    add_sampling(parser, "molmo2")
    parser.add_argument("--size", type=int, default=378, help="height and width of a frame (%(default)s)")
    parser.add_argument("--cells", type=int, default=81, help="of a frame (%(default)s)")
    add_pruned_fraction(parser, "0.5")
    parser.add_argument("--videos", type=int, default=1, help="in a row at most (%(default)s)")
    parser.add_argument("--text", type=int, default=400, help="room for text in a row, tokens (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="of a batch (%(default)s)")
    parser.add_argument("--tokenizer", metavar="DIR", help="with tokenizer.json (default: trained on the data's text)")
    parser.add_argument("--workers", default="0,1,2", metavar="N[,N]", help="decoding threads (%(default)s)")
    parser.add_argument("--records", type=int, default=16, help="of a round, for the stages (%(default)s)")
    parser.add_argument("--batches", type=int, default=4, help="of a round, for every pipeline (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (%(default)s)")
    parser.add_argument("--step_s", type=float, metavar="X", help="seconds of the step that is to be fed")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the records (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the rows and where they were measured")


def measure(args: argparse.Namespace, command: str) -> None:
    """Prints a table, writes the file."""
    names = ("frames", "size", "cells", "videos", "text", "rows", "records", "batches", "rounds")
    check_at_least_one(args, *names)
    if args.step_s is not None and not args.step_s > 0:
        raise ValueError(f"--step_s {args.step_s:g} must be more than 0")
    shared.check_files(args)
    known = {field.name for field in dataclasses.fields(loading.LoadingSettings)} - {"workers"}
    given = {name: value for name, value in vars(args).items() if name in known}
    settings = loading.LoadingSettings(**given, workers=_workers(args.workers))
    loading.run(settings, command, shared.say, args.json)


def _workers(text: str) -> list[int]:
    found = words(text, "--workers")
    wrong = [word for word in found if not word.isdigit()]
    if wrong:
        raise ValueError(f"--workers {wrong[0]} must be a whole number from 0 up")
    return [int(word) for word in found]
