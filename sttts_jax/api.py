"""What Python users call; every command is one of these. Importing it is quick: JAX comes with the first call.

    from sttts_jax import api

    api.train(config, "runs/mine")
    for found in api.plan(config, accelerator="v5p-128"): print(found.fits, found.step_seconds)
    api.evaluate("runs/mine", "shapes_video_qa", pruned_fraction=["0.3", "0.5"], say=print)
    api.open_checkpoint("runs/mine").watch("clip.mp4").ask("What happens at the end?").text

Mistakes are a ValueError or FileNotFoundError with one sentence that says what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epy

from sttts_jax.processes.config import DistributedConfig

if TYPE_CHECKING:
    import ml_collections

    from sttts_jax.paths import PathLike

with epy.lazy_imports():
    import jax

    from sttts_jax import distributed
    from sttts_jax.data import video as videos
    from sttts_jax.evals import evaluate as evaluations
    from sttts_jax.evals import table, while_training
    from sttts_jax.infer import open as checkpoints
    from sttts_jax.plan import plan as plans
    from sttts_jax.plan import target as targets
    from sttts_jax.report import look, runs, views
    from sttts_jax.train import main, state

with epy.lazy_api_imports(globals()):
    from sttts_jax.convert.from_hf import convert_from_hf
    from sttts_jax.convert.to_hf import convert_to_hf
    from sttts_jax.infer.open import open_checkpoint
    from sttts_jax.report.runs import Report

__all__ = ["Report", "convert_from_hf", "convert_to_hf", "evaluate", "open_checkpoint", "plan", "score", "train"]


def train(config: ml_collections.ConfigDict, workdir: PathLike) -> state.TrainState:
    """Trains what a config says, or goes on where the workdir stands; returns the state at the end.

        config = get_config("method=scorer,data_dir=data")   # of configs/demo.py
        train(config, "runs/mine")

    config   as the files in `configs` build it, see `train.config`
    workdir  where checkpoints, metrics and the tokenizer go; one with checkpoints must be of the same config

    Where `evaluation.every` is set, the model answers the tasks of that section as it trains. Raises ValueError, before
    any device is touched, for a config that contradicts itself or the workdir.
    """
    return main.main(config, workdir, evaluator=while_training.evaluator)


def plan(
    config: ml_collections.ConfigDict,
    *,
    topology: str = "",
    accelerator: str = "",
    slices: int = 1,
    device: str = "",
    devices: int = 0,
    timeout_s: float = 3600,
    memory_gib: float | None = None,
) -> Iterator[plans.Plan]:
    """Compiles the steps that `train` would run for devices that need not be there; a Plan for every removed share.

        (found,) = plan(config, topology="v5p:2x2x4")
        print(found.fits, found.peak_gib, found.advice)

    topology       of a TPU slice, "v5p:4x4x4"; or accelerator, "v5p-128"; `slices` of them
    device         "cpu" or "gpu" in their place, and how many `devices`
    timeout_s      of one compilation, and memory_gib that it may take

    Each is compiled as it is asked for, in a process of its own. Raises ValueError for a config that contradicts itself
    or the mesh, and where a limit is reached.
    """
    target = targets.make_target(topology, accelerator, slices, device, devices)
    return plans.plan_run(config, target, timeout_s=timeout_s, memory_gib=memory_gib)


def evaluate(
    workdirs: PathLike | Sequence[PathLike],
    tasks: str | Sequence[str],
    *,
    method: str | None = None,
    pruned_fraction: str | float | Sequence[str | float] | None = None,
    max_frames: int | Sequence[int] | None = None,
    max_fps: float | None = None,
    max_crops: int | None = None,
    sampling: str | None = None,
    batch: int = 32,
    mesh: Mapping[str, int] | None = None,
    frame_buckets: Sequence[int] = (),
    limit: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    out: PathLike | None = None,
    overwrite: bool = False,
    report: runs.Report | None = None,
    say: Callable[[str], None] | None = None,
    processes: DistributedConfig | None = None,
) -> list[evaluations.Evaluation]:
    """Answers benchmark questions from checkpoints; accuracies with 95 % intervals, one Evaluation a run, in order.

        (run,) = evaluate("runs/demo/scorer", "shapes_video_qa", pruned_fraction="0.7")
        print(run.results[0][0].overall.accuracy)

    workdirs         of runs, converted checkpoints, or single steps; config, tokenizer and weights are there
    tasks            "shapes_video_qa", or "jsonl:PATH" for your own questions; "NAME:SPLIT" takes another split
    method           of pruning, see `infer.open.read_checkpoint`; None: as trained
    pruned_fraction  share of the cells to remove, or several; None: as trained. A method that removes nothing has one
    max_frames       of a video at most, or several; max_fps: frames a second at most; None: as trained
    max_crops        most tiles of an image, and sampling of frames, see `infer.model.Model.watch`
    batch            videos a batch, over all devices, or a few more that divide over the mesh
    mesh             {"fsdp": -1, "tensor": 2} and the like, see `mesh.axis_sizes`; None: over all devices by rows
    frame_buckets    frames that rows are made for; empty: 8, 16, 32, .. up to `max_frames`
    limit            ask only the first so many questions of a task; seed: of methods that choose at random
    data_dir         where built data sets lie; None: where the run found them
    out              for results.json and predictions; None: "eval" in each workdir. Several runs get a folder each
    overwrite        measure again what is in results.json; else what was measured of the same questions, files, weights
                     and settings is read, whatever they are called
    report           a page and a picture to write as well, see `Report`
    say              gets progress and the tables, line by line, on the first process
    processes        how the processes find each other; None: as the environment says

    Every process calls the same. Raises FileNotFoundError (no checkpoint) or ValueError before anything is compiled.
    """
    sweep = evaluations.Sweep(method, pruned_fraction, max_frames, max_fps, max_crops, sampling)
    with distributed.joined(processes or DistributedConfig()):
        if report is not None and jax.process_count() > 1:
            raise ValueError("a report or picture is made by one process: evaluate first, then ask for them in one")
        found = evaluations.plan(workdirs, tasks, sweep, limit, data_dir, out, overwrite, mesh)
        if report is not None:
            runs.check_report(found, report)
        evaluations.measure(found, batch, seed, frame_buckets, say)
        if say is not None and jax.process_index() == 0:
            say(table.summary(found))
    if report is not None:
        runs.write_report(found, batch, report)
    return found


def score(
    checkpoint: PathLike,
    video: str | Path | bytes,
    out: PathLike | None = None,
    *,
    method: str | None = None,
    pruned_fraction: str | float | None = None,
    max_frames: int | None = None,
    max_fps: float | None = None,
    sampling: str | None = None,
    start: float | None = None,
    end: float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> views.ScoreView:
    """Which parts of a video a checkpoint keeps: masks, scores, and the frames to draw them on.

        view = score("runs/demo/scorer", "clip.mp4", "clip.html", pruned_fraction="0.8")
        print(view.keep.mean(), view.scores)

    checkpoint       as of `open_checkpoint`
    video            a file (mp4, mov, mkv, webm, avi, ts, gif, ..), or its bytes
    out              a page (.html) or arrays (.npz) to write as well, see `report.look.write_view`
    method           of pruning, see `infer.open.read_checkpoint`
    pruned_fraction  share of the cells to remove, max_frames, max_fps, sampling: as trained where None
    start, end       of the clip, seconds
    seed             of methods that choose at random
    name             of the video, on the page and in errors; None: that of the file

    Raises ValueError, one sentence that names the file, before anything is compiled.
    """
    if out is not None:
        look.check_file(out)
    name = name or ("video" if isinstance(video, bytes) else Path(video).name)
    opened = checkpoints.read_checkpoint(checkpoint, method)
    videos.probe(video, name if isinstance(video, bytes) else None, opened.data.limits)
    setting = opened.exact_setting(pruned_fraction, max_frames, max_fps, None, sampling)
    view = look.view_video(opened, video, setting, name=name, start=start, end=end, seed=seed)
    if out is not None:
        look.write_view(view, out)
    return view
