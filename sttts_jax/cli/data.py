"""sttts-jax data: build, inspect and list datasets.

    sttts-jax data list
    sttts-jax data build shapes_video_qa --size 3000,300,600
    sttts-jax data inspect shapes_video_qa --split test --sheet clips.png
    sttts-jax data inspect jsonl:my/videos.jsonl

`inspect` prints records as the model gets them; --sheet draws their sampled frames, one record a line.
"""

import argparse
import sys
from pathlib import Path

from etils import epy

from sttts_jax import exit_codes
from sttts_jax.cli.arguments import add_sampling, check_not_empty
from sttts_jax.cli.main import run
from sttts_jax.data.config import DEFAULT_DATA_DIR, Source

with epy.lazy_imports():
    from PIL import Image

    from sttts_jax.data import contact_sheet, preview, sampling
    from sttts_jax.data.sources import registry

SPLITS = ("train", "validation", "test")
THUMB = 144  # height of a frame in the contact sheet, pixels
GAP = 4  # white pixels between them


def main(argv: list[str]) -> int:
    """Returns 0, or the code of a mistake where a record that was to be shown cannot be used."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="build|inspect|list")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="where built datasets lie (%(default)s)")

    build = commands.add_parser("build", parents=[folder], help="make a dataset on disk")
    build.add_argument("name")
    build.add_argument("--size", default="3000,300,600", help="clips of train,validation,test (%(default)s)")
    build.add_argument("--style", default="both", help="short_answer, multiple_choice or both (%(default)s)")
    build.set_defaults(run=_build)

    inspect = commands.add_parser("inspect", parents=[folder], help="print records, draw their frames")
    inspect.add_argument("name")
    inspect.add_argument("--split", default="train")
    inspect.add_argument("--first", type=int, default=0, help="index of the first record (%(default)s)")
    inspect.add_argument("--count", type=int, default=3, help="how many records (%(default)s)")
    inspect.add_argument("--max_frames", type=int, default=8)
    inspect.add_argument("--max_fps", type=float, default=2.0)
    add_sampling(inspect, "molmo2")
    inspect.add_argument("--sheet", metavar="FILE.png", help="write the frames there")
    inspect.set_defaults(run=_inspect)

    known = commands.add_parser("list", parents=[folder], help="names that can be built or read")
    known.set_defaults(run=_list)
    return parser


def _build(args: argparse.Namespace) -> int:
    words = args.size.split(",")
    if len(words) != len(SPLITS) or not all(word.strip().isdigit() for word in words):
        raise ValueError(f"--size {args.size} must be three whole numbers of clips: train,validation,test")
    sizes = dict(zip(SPLITS, map(int, words), strict=True))
    path = registry.build(args.name, args.data_dir, sizes, args.style)
    print(f"{args.name}: {', '.join(f'{n} {split}' for split, n in sizes.items())} clips in {path}")
    return 0


def _list(args: argparse.Namespace) -> int:
    for name, line in registry.BUILDERS.items():
        print(f"{name:18s}{line}")
        for config in registry.built_configs(name, args.data_dir):
            print(f"{'':18s}  built: {name}/{config}")
    for name, line in registry.READERS.items():
        print(f"{name:18s}{line}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    check_not_empty(args, "sheet", "data_dir", "split")
    chosen = sampling.FrameSampling(args.max_frames, args.max_fps, args.sampling)
    source = registry.open_source(Source(args.name, 1.0, args.split, args.data_dir))
    last = min(args.first + args.count, len(source))
    if not 0 <= args.first < last:
        raise ValueError(f"--first {args.first} --count {args.count} is outside of the {len(source)} records")
    print(f"{args.name} ({args.split}): {len(source)} records")
    strips, bad = [], 0
    for seen in preview.preview(source, range(args.first, last), chosen):
        print(f"\n{seen.text}")
        bad += not seen.usable
        if args.sheet and seen.frames is not None:
            strips.append(contact_sheet.film_strip(contact_sheet.thumbnails(seen.frames, THUMB), GAP))
    if strips:
        sheet = Path(args.sheet)
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet.stack_strips(strips, GAP)).save(sheet)
        print(f"\nframes in {args.sheet}")
    return exit_codes.MISTAKE if bad else exit_codes.DONE


if __name__ == "__main__":
    sys.exit(run("data", main))
