"""sttts-jax bench data: how fast the input pipeline makes rows."""

import argparse
import tempfile
from typing import TYPE_CHECKING, Any

from sttts_jax.cli.bench import arguments as given

if TYPE_CHECKING:
    from sttts_jax.bench.loading import Row
    from sttts_jax.data.config import DataConfig
    from sttts_jax.data.tokenizer import Tokenizer

DATA = """How fast the input pipeline makes rows, and what share of the work every stage is: read, decode (frames at
their true times), resize, prompt, pack, batch. DATA is a dataset's name (shapes_video_qa), a JSONL file, or a folder of
video files. --step_s says whether the pipeline keeps training steps of that many seconds fed.
"""
VOCAB = 512  # rows of a tokenizer that is trained on the data's own text
TEXTS = 200  # records whose text it is trained on
STAMP = 12  # tokens of a frame that are not cells: markers and a time


def add(add_parser: given.Add) -> None:
    """The parser of `bench data`."""
    parser = add_parser(
        "data",
        help="the input pipeline: rows a second by threads, and its stages",
        description=DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(measure=_data)
    parser.add_argument("data", metavar="DATA", help="a dataset's name, FILE.jsonl or a folder of video files")
    parser.add_argument("--split", default="train", help="of a dataset (%(default)s)")
    parser.add_argument("--data_dir", help="where built datasets lie (default: as sttts-jax data)")
    parser.add_argument("--frames", type=int, default=8, help="at most, of a video (%(default)s)")
    parser.add_argument("--max_fps", type=float, default=2.0, help="frames a second at most (%(default)s)")
    parser.add_argument("--size", type=int, default=378, help="height and width of a frame (%(default)s)")
    parser.add_argument("--cells", type=int, default=81, help="of a frame (%(default)s)")
    parser.add_argument("--k", default="0.5", help="share of the cells that the model removes (%(default)s)")
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


def _data(args: argparse.Namespace, command: str) -> int:
    names = ("frames", "size", "cells", "videos", "text", "rows", "records", "batches", "rounds")
    given.check_positive(args, *names)
    if args.step_s is not None and not args.step_s > 0:
        raise ValueError(f"--step_s {args.step_s:g} must be more than 0")
    workers = given.words(args.workers, "--workers")
    wrong = [word for word in workers if not word.isdigit()]
    if wrong:
        raise ValueError(f"--workers {wrong[0]} must be a whole number from 0 up")
    args.plot = None
    given.check_files(args)
    from sttts_jax.bench.loading import Plan, measure

    with tempfile.TemporaryDirectory() as folder:
        config = _config(args, folder)
        tokenizer = _tokenizer(args, config, folder)
        plan = Plan(config, [int(word) for word in workers], args.records, args.batches, args.rounds, args.step_s)
        rows = measure(plan, tokenizer, lambda line: print(line, flush=True))
    head = _header(args, config, command)
    if args.json:
        from sttts_jax.paths import write_json

        write_json(args.json, {**head, "rows": [row.as_json() for row in rows]})
    _print(head, rows)
    return 0


def _config(args: argparse.Namespace, folder: str) -> "DataConfig":
    from sttts_jax.bench.loading import file_source
    from sttts_jax.data.config import DEFAULT_DATA_DIR, data_config
    from sttts_jax.pruning.budget import row_capacity

    frames = args.frames * args.videos
    kept = row_capacity(frames, args.k, args.cells, args.videos)
    source = (file_source(args.data, folder), 1.0, args.split, args.data_dir or DEFAULT_DATA_DIR)
    return data_config(
        sources=(source,),
        max_frames=args.frames,
        max_fps=args.max_fps,
        image_size=args.size,
        cells=args.cells,
        fraction=args.k,
        frames_per_row=frames,
        items_per_row=args.videos,
        row_length=kept + STAMP * frames + args.text,
        rows=args.rows,
        seed=args.seed,
    )


def _tokenizer(args: argparse.Namespace, config: "DataConfig", folder: str) -> "Tokenizer":
    from sttts_jax.data.prompt import target_text, user_text
    from sttts_jax.data.record import RecordError
    from sttts_jax.data.sources.registry import open_source
    from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer

    if args.tokenizer:
        return Tokenizer.load(args.tokenizer)
    records, texts = open_source(config.sources[0]), []
    for index in range(min(len(records), TEXTS)):
        try:
            texts += [f"user\n{user_text(m)}\nassistant\n{target_text(m)}" for m in records[index].messages]
        except RecordError:  # counted where it is measured
            continue
    return train_tokenizer(texts, folder, VOCAB)


def _header(args: argparse.Namespace, config: "DataConfig", command: str) -> dict[str, Any]:
    from sttts_jax.bench.record import place, versions

    shape = config.row_shape
    sizes = {"frames": shape.frames, "size": shape.size, "row_length": shape.length, "rows": config.rows}
    settings = {name: getattr(args, name) for name in ("data", "k", "records", "batches", "rounds", "seed", "step_s")}
    return {**place(command), **settings, "sizes": sizes, **versions()}


def _print(head: dict[str, Any], rows: "list[Row]") -> None:
    from rich.console import Console

    from sttts_jax.bench.loading import rows_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe: whole lines
    sizes = head["sizes"]
    height, width = sizes["size"]
    title = f"{head['data']}: rows of {sizes['frames']} frames at {width} x {height}, {head['host']}"
    console.print(f"\n{title}\n", highlight=False)
    console.print(rows_table(rows))
    if head["step_s"] is not None:
        console.print(f"fed: a step of {head['step_s']:g} s over the seconds of a batch of {sizes['rows']} rows")
