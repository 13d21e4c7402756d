"""sttts-jax answer: ask a checkpoint about video files or images; the answer appears while it is made.

    sttts-jax answer --checkpoint runs/demo/scorer --video clip.mp4 --question "What happens at the end?"
    sttts-jax answer --checkpoint ckpt/molmo2 --video talk.mp4 --start 60 --end 90 --subtitles talk.srt \\
        --question "What is on the slide?" --question "Who speaks?" --show talk.html
    sttts-jax answer --checkpoint ckpt/molmo2 --image a.jpg --image b.jpg --question "What differs?"
    sttts-jax answer --checkpoint ckpt/molmo2 --questions questions.jsonl --out answers.jsonl

Each video is asked about by itself, in order, with every question, and is read once for all of them; images come
before it, in one prompt. `--question -` reads questions from standard input, one a line. Answers go to standard output
and everything else to standard error: after each answer what was kept and how fast it was. Programs are compiled before
the clock starts.

A file of questions has one JSON object a line, {"video": "clip.mp4", "question": "What falls?"}, with the fields of
docs/data.md and without answers. Each video in it is read once. The answers are written line by line as they come; the
same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

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
)
from sttts_jax.cli.main import run
from sttts_jax.processes.config import DistributedConfig

with epy.lazy_imports():
    import jax

    from sttts_jax import api, distributed, paths
    from sttts_jax.data import sampling
    from sttts_jax.data import video as videos
    from sttts_jax.infer import batch, generate
    from sttts_jax.infer import model as models
    from sttts_jax.infer import scene as scenes
    from sttts_jax.report import answers as records
    from sttts_jax.report import look


PLAIN = "user_qa"  # puts nothing before a question
# What a file of questions says itself, or has no place for.
OF_VIDEOS = ("start", "end", "subtitles", "show", "pruned_fraction", "max_frames", "max_fps", "sampling")
ONE_BY_ONE = ("video", "image", "question", "start", "end", "subtitles", "show", "json")


def main(argv: list[str]) -> int:
    """Prints answers. Raises ValueError with one sentence for a bad file or setting, before any device is touched."""
    args = _parser().parse_args(argv)
    check_not_empty(args, "pruned_fraction", "subtitles", "show", "json", "questions", "out", "style")
    if args.questions is None:
        _check(args)
    config = distributed_config(args)
    return several.run("answer", argv, config, lambda: _together(args, config))


def _together(args: argparse.Namespace, config: DistributedConfig) -> int:
    with distributed.joined(config, _tell):
        return _part(args)


def _part(args: argparse.Namespace) -> int:
    """Of this process: the first one answers."""
    if not jax.distributed.is_initialized():
        return _answer(args)
    if jax.process_index() > 0:
        return _follow(args)
    distributed.everywhere(True)
    return _answer(args)


def _follow(args: argparse.Namespace) -> int:
    """The part of any other process than the first: computes the same, and says and writes nothing."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        args.out = args.out and _copied(args.out, folder)
        distributed.everywhere(True)  # the first one waits for it before it writes
        args.show = args.json = None
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return _answer(args)


def _copied(out: str, folder: str) -> str:
    """A file of answers of its own, with those that are there."""
    copy = Path(folder) / "answers.jsonl"
    if Path(out).exists():
        shutil.copyfile(out, copy)
    return str(copy)


def _answer(args: argparse.Namespace) -> int:
    if args.questions is not None:
        return _answer_file(args)
    generation = _generation(args)
    model = api.open_checkpoint(args.checkpoint, args.dtype, args.method)
    limits = model.checkpoint.data.limits
    for video in args.video:
        videos.probe(video, limits=limits)
    for question in args.question:
        if question != "-":
            scenes.question_tokens(model.checkpoint.tokenizer, question, generation.style)
    for video in args.video[1:]:  # the first one is decoded below, before anything is compiled
        videos.decode(video, sampling.FrameSampling(1), size=None, start=args.start, end=args.end, limits=limits)
    asked = []
    for number, scene in enumerate(_scenes(model, args)):
        answers = [_ask(scene, question, generation, args) for question in _questions(args.question)]
        if args.show:
            page = _numbered(args.show, number)
            look.write_view(look.view_scene(scene, answers), page)
            _tell(f"page: {page}")
        asked.append(records.scene_record(scene, answers))
    if args.json:
        paths.write_json(args.json, records.session_record(model.checkpoint, generation, asked))
    return 0


def _answer_file(args: argparse.Namespace) -> int:
    given = [name for name in ONE_BY_ONE if getattr(args, name)]
    if given:
        raise ValueError(f"--{given[0]} goes with no --questions; what is asked and shown stands in that file")
    if args.style != PLAIN:
        raise ValueError("--style goes with no --questions; give each question its `style` in that file")
    if not args.out:
        raise ValueError("--questions needs --out FILE.jsonl for the answers")
    check_at_least_one(args, "max_frames", "max_new_tokens")
    model = api.open_checkpoint(args.checkpoint, args.dtype, args.method)
    count = batch.answer_file(
        model,
        args.questions,
        args.out,
        _generation(args),
        pruned_fraction=args.pruned_fraction,
        max_frames=args.max_frames,
        max_fps=args.max_fps,
        max_crops=args.max_crops,
        sampling=args.sampling,
        overwrite=args.overwrite,
        say=_tell,
    )
    before = f", {count.before} were there before" if count.before else ""
    _tell(f"{count.answered} answers in {args.out}{before}; {count.bad} questions could not be asked")
    return 0


def _generation(args: argparse.Namespace) -> generate.GenerationConfig:
    return generate.GenerationConfig(args.max_new_tokens, args.temperature, args.top_p, args.seed, args.style)


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for what is wrong whatever the files and the checkpoint are."""
    if args.out or args.overwrite:
        raise ValueError("--out and --overwrite go with --questions FILE.jsonl; give that, or --json for one scene")
    if not args.question:
        raise ValueError("there is nothing to ask; give --question TEXT, or --questions FILE.jsonl with --out")
    if not args.video and not args.image:
        raise ValueError("there is nothing to look at; give --video FILE or --image FILE")
    if not all([*args.video, *args.image]):
        raise ValueError("--video or --image is empty; give a file, or leave it out")
    _refuse_needless(args)
    if args.subtitles and len(args.video) > 1:
        raise ValueError("--subtitles belong to one video; give one --video")
    if args.show and Path(args.show).suffix != ".html":
        raise ValueError(f"--show {args.show} must end in .html")
    for file in filter(None, (args.show, args.json)):
        paths.check_writable(file)
    if any(not question.strip() for question in args.question):
        raise ValueError("--question is empty; ask something, or give - to read questions from standard input")
    if "-" in args.question and (len(args.question) > 1 or len(args.video) > 1):
        raise ValueError("--question - goes with no other --question and with one --video")
    check_at_least_one(args, "max_frames", "max_new_tokens")


def _refuse_needless(args: argparse.Namespace) -> None:
    """What is about a video goes with one, and what is about images with some."""
    for name in OF_VIDEOS:
        if not args.video and getattr(args, name) is not None:
            raise ValueError(f"--{name} is about a video; give --video FILE, or leave it out")
    if not args.image and args.max_crops is not None:
        raise ValueError("--max_crops is about images; give --image FILE, or leave it out")


def _scenes(model: models.Model, args: argparse.Namespace) -> Iterator[scenes.Scene]:
    for video in args.video or [None]:
        yield model.watch(
            video,
            images=args.image,
            start=args.start,
            end=args.end,
            subtitles=args.subtitles or (),
            pruned_fraction=args.pruned_fraction,
            max_frames=args.max_frames,
            max_fps=args.max_fps,
            max_crops=args.max_crops,
            sampling=args.sampling,
        )


def _questions(given: Sequence[str]) -> Iterator[str]:
    for question in given:
        yield from _typed() if question == "-" else [question]


def _typed() -> Iterator[str]:
    try:
        yield from (line.strip() for line in sys.stdin if line.strip())
    except UnicodeDecodeError:
        raise ValueError("standard input is not UTF-8; convert it, as with iconv -f latin1 -t utf-8") from None


def _ask(
    scene: scenes.Scene, question: str, generation: generate.GenerationConfig, args: argparse.Namespace
) -> scenes.Answer:
    """Prints the answer as it comes, after its question where there are several."""
    about = f"{scene.name}: " if len(args.video) > 1 else ""
    if about or len(args.question) > 1:
        _tell(about + question)
    answer = scene.ask(question, generation, lambda piece: print(piece, end="", flush=True))
    print(flush=True)
    _tell(f"[{records.summary(scene, answer)}]")
    return answer


def _tell(line: str) -> None:
    """What is no answer."""
    print(line, file=sys.stderr, flush=True)


def _numbered(path: str, number: int) -> str:
    """out.html, out-2.html, out-3.html, .."""
    return path if not number else f"{path.removesuffix('.html')}-{number + 1}.html"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax answer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's workdir, a converted checkpoint, or one step")
    add("--video", action="append", default=[], metavar="FILE", help="mp4, mov, mkv, webm, avi, ..; may be repeated")
    add("--image", action="append", default=[], metavar="FILE", help="before the video; may be repeated")
    add("--question", action="append", default=[], metavar="TEXT", help="may be repeated; - reads standard input")
    add("--questions", metavar="FILE.jsonl", help="many questions, in the place of --video, --image and --question")
    add("--out", metavar="FILE.jsonl", help="for the answers to --questions; goes on where it stopped")
    add("--overwrite", action="store_true", help="drop what in --out answers something else than is asked now")
    add("--start", type=float, metavar="S", help="of the clip, seconds")
    add("--end", type=float, metavar="S", help="of the clip, seconds")
    add("--subtitles", metavar="FILE", help=".srt or .vtt, with the times of the whole video")
    add_method(parser)
    add_pruned_fraction(parser)
    add("--max_frames", type=int, metavar="N", help="(default: as trained)")
    add("--max_fps", type=float, metavar="R", help="frames a second at most (default: as trained)")
    add("--max_crops", type=int, metavar="N", help="tiles of an image at most (default: 24); 0: whole only")
    add_sampling(parser)
    add("--max_new_tokens", type=int, default=256, metavar="N", help="(%(default)s)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    add("--top_p", type=float, default=1.0, help="share of the likeliest tokens to draw from (%(default)s)")
    add("--seed", type=int, default=0, help="for sampling, and for methods that prune at random (%(default)s)")
    add("--style", default=PLAIN, help="of Molmo2's data, put before the question (%(default)s: nothing)")
    add("--dtype", default="", metavar="NAME", help="float32 (faster on a CPU) or bfloat16 (default: as trained)")
    add("--show", metavar="OUT.html", help="write a page of what was kept; OUT-2.html for a second video, ..")
    add("--json", metavar="FILE", help="write everything as JSON")
    add_distributed(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run("answer", main))
