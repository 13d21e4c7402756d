"""sttts-jax evaluate: answer benchmark questions from checkpoints; accuracy with intervals.

    sttts-jax evaluate --workdir runs/demo/scorer --tasks shapes_video_qa
    sttts-jax evaluate --workdir runs/demo/none,runs/demo/scorer --tasks shapes_video_qa --pruned_fraction 0,0.3,0.5 \\
        --report report.html

Needs nothing but the workdirs: config, tokenizer and weights are there. A finished measurement of the same step is read
from results.json; --overwrite measures again. Tasks: shapes_video_qa, or jsonl:PATH for your own questions; NAME:SPLIT
takes another split.
"""

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttts_jax.cli.main import run

if TYPE_CHECKING:  # these import jax, which --help and wrong arguments do without
    from sttts_jax.evals.questions import Questions
    from sttts_jax.evals.results import Result, ResultsFile
    from sttts_jax.infer.checkpoint import Checkpoint, Setting

CONFIDENCE = "intervals are 95 % (Wilson)"


@dataclasses.dataclass
class _Job:
    """A run, what it is asked, and where its results go."""

    checkpoint: "Checkpoint"
    questions: "list[Questions]"
    settings: "list[Setting]"
    file: "ResultsFile"
    metrics: list[dict[str, Any]]
    results: "list[list[Result]]" = dataclasses.field(default_factory=list)  # by task, then setting

    @property
    def step_seconds(self) -> float | None:
        times = [line["time/step_s"] for line in self.metrics if "time/step_s" in line]
        return statistics.median(times) if times else None


def main(argv: list[str]) -> int:
    """Prints one table a task. Raises ValueError or FileNotFoundError with one sentence before anything is compiled."""
    args = _parser().parse_args(argv)
    for name in ("batch", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")
    if Path(args.report or "x.html").suffix != ".html" or Path(args.picture or "x.png").suffix != ".png":
        raise ValueError("--report must end in .html and --picture in .png")
    import jax

    from sttts_jax.distributed import DistributedConfig, init

    init(DistributedConfig())
    if (args.report or args.picture) and jax.process_count() > 1:
        raise ValueError("--report and --picture are made by one process: evaluate first, then ask for them in one")
    jobs = _plan(args)
    for job in jobs:
        _measure(job, args)
    if jax.process_index() == 0:
        _print(jobs)
    if args.report or args.picture:
        _report(jobs, args, "sttts-jax evaluate " + " ".join(argv))
    return 0


def _plan(args: argparse.Namespace) -> list[_Job]:
    """Reads configs, opens sources and earlier results; nothing is compiled or loaded."""
    from sttts_jax.evals.questions import Questions, task_source
    from sttts_jax.evals.results import ResultsFile
    from sttts_jax.evals.tasks.registry import find_task
    from sttts_jax.infer.open import read_checkpoint
    from sttts_jax.paths import as_path

    tasks = [find_task(name) for name in _words(args.tasks, "--tasks")]
    fractions = _words(args.pruned_fraction, "--pruned_fraction") if args.pruned_fraction else [None]
    frames = _whole_numbers(args.max_frames, "--max_frames") if args.max_frames else [None]
    directories = _words(args.workdir, "--workdir")
    checkpoints = [read_checkpoint(directory) for directory in directories]
    if len({checkpoint.name for checkpoint in checkpoints}) < len(checkpoints):
        named = zip(checkpoints, directories, strict=True)
        checkpoints = [dataclasses.replace(checkpoint, name=directory) for checkpoint, directory in named]
    jobs = []
    for checkpoint in checkpoints:
        asked = [
            Questions(
                task,
                task_source(task, checkpoint.data, args.data_dir),
                checkpoint.tokenizer,
                checkpoint.data.cells,
                args.limit,
            )
            for task in tasks
        ]
        # A method that drops nothing has one fraction only, so some settings may be the same.
        settings = list(dict.fromkeys(checkpoint.setting(k, f, args.max_fps) for f in frames for k in fractions))
        out = as_path(args.out) if args.out else as_path(checkpoint.directory) / "eval"
        out = out / checkpoint.name.strip("/").replace("/", "_") if args.out and len(checkpoints) > 1 else out
        file = ResultsFile(out, checkpoint.name, checkpoint.config, args.overwrite)
        jobs.append(_Job(checkpoint, asked, settings, file, _metrics(checkpoint.directory)))
    return jobs


def _measure(job: _Job, args: argparse.Namespace) -> None:
    """Fills in the results, from the file where they are there."""
    import jax

    from sttts_jax.evals.gather import everywhere
    from sttts_jax.evals.harness import Harness

    steps = _whole_numbers(args.frame_buckets, "--frame_buckets") if args.frame_buckets else []
    harness = Harness(job.checkpoint, args.batch, args.seed, steps)
    for questions in job.questions:
        results = []
        for setting in job.settings:
            result = job.file.find(harness.key(questions, setting))
            origin = "read from results.json"
            if not everywhere(result is not None) or result is None:
                result, answers = harness.run(questions, setting)
                origin = f"{result.seconds_per_question * len(answers) + result.compile_seconds:.1f} s"
                if jax.process_index() == 0:
                    job.file.put(result, answers)
            results.append(result)
            if jax.process_index() == 0:
                print(
                    f"{job.checkpoint.name} step {job.checkpoint.step}: {questions.task.name}, "
                    f"fraction {setting.fraction}, {setting.max_frames} frames: "
                    f"{result.overall.right} of {result.overall.count} right, {origin}",
                    flush=True,
                )
        job.results.append(results)
    job.checkpoint.release()


def _print(jobs: list[_Job]) -> None:
    from sttts_jax.evals.table import Row, remarks, results_table

    for number, questions in enumerate(jobs[0].questions):
        rows = [
            Row(job.checkpoint.name, job.checkpoint.pruning.method, result, job.step_seconds)
            for job in jobs
            for result in job.results[number]
        ]
        print(f"\n{questions.task.name}, {len(questions.asked):,} questions, {CONFIDENCE}\n\n{results_table(rows)}")
        for line in remarks(rows):
            print(line)
    print("\nresults: " + ", ".join(str(job.file.directory) for job in jobs))


def _report(jobs: list[_Job], args: argparse.Namespace, command: str) -> None:
    """The page and the picture, of the first task."""
    from sttts_jax.paths import write_bytes, write_text
    from sttts_jax.report.film import kept_tokens_png
    from sttts_jax.report.page import training_report
    from sttts_jax.report.runs import Evaluated, report_view
    from sttts_jax.report.speed import prefill_seconds

    timed = [(job, s) for job in jobs for s in job.settings if s.max_frames == job.checkpoint.trained.max_frames]
    speed: dict[str, dict[str, float]] = {job.checkpoint.name: {} for job in jobs}
    if args.report:
        shapes = [(job.checkpoint, job.questions[0].row_shape(job.checkpoint.data, setting)) for job, setting in timed]
        for (job, setting), value in zip(timed, prefill_seconds(shapes, args.batch), strict=True):
            speed[job.checkpoint.name][setting.fraction] = value
    runs = []
    for job in jobs:
        run = Evaluated(
            job.checkpoint, job.results[0], job.metrics, job.step_seconds, speed[job.checkpoint.name], answers=()
        )
        answers = job.file.answers(run.main) if run.main else ()
        runs.append(dataclasses.replace(run, answers=answers))
    view = report_view(runs, jobs[0].questions[0], args.batch, command)
    if args.report:
        write_text(args.report, training_report(view))
        print(f"report: {args.report}")
    if args.picture:
        shown = next((clip for clip in view.clips if clip.method == "scorer"), None)
        if shown is None:
            raise ValueError("--picture shows a run of method scorer at its trained fraction, and none was evaluated")
        write_bytes(args.picture, kept_tokens_png(shown))
        print(f"picture: {args.picture}")


def _metrics(directory: str) -> list[dict[str, Any]]:
    """Lines of the run's metrics.jsonl; none where the checkpoint came without."""
    from sttts_jax.paths import as_path
    from sttts_jax.train.metrics import read_lines

    path = as_path(directory) / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def _words(text: str, flag: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(f"{flag} is empty; give one or more, separated by commas")
    return list(dict.fromkeys(words))


def _whole_numbers(text: str, flag: str) -> list[int]:
    words = _words(text, flag)
    for word in words:
        if not word.isdigit() or not int(word):
            raise ValueError(f"{flag} {word} must be a whole number from 1 up")
    return [int(word) for word in words]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sttts-jax evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, metavar="DIR[,DIR]", help="runs to evaluate and compare")
    parser.add_argument("--tasks", required=True, metavar="NAME[,NAME]", help="shapes_video_qa, jsonl:PATH")
    parser.add_argument("--pruned_fraction", metavar="K[,K]", help="shares of cells to remove (default: as trained)")
    parser.add_argument("--max_frames", metavar="N[,N]", help="(default: as trained)")
    parser.add_argument("--max_fps", type=float, help="frames a second at most (default: as trained)")
    parser.add_argument("--batch", type=int, default=32, help="videos a batch, over all devices (%(default)s)")
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
    return parser


if __name__ == "__main__":
    sys.exit(run("evaluate", main))
