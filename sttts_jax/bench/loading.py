"""`bench data`: how fast the input pipeline makes rows, where its time goes, and whether it keeps a step fed.

Stages are timed one by one on the same records, in one thread: read, decode, resize, prompt, pack, batch. The pipeline
is timed whole, with so many decoding threads each time. All take turns, so that a slow minute hits all alike.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sttts_jax.bench.record import place, show, versions
from sttts_jax.bench.timing import quartiles
from sttts_jax.data.config import DEFAULT_DATA_DIR, DataConfig, data_config
from sttts_jax.data.image import resize
from sttts_jax.data.packing import Item, batch_packed, pack
from sttts_jax.data.pipeline import train_batches
from sttts_jax.data.prompt import build_example, target_text, user_text
from sttts_jax.data.reader import read_video
from sttts_jax.data.record import RecordError
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.paths import PathLike, write_json
from sttts_jax.pruning.budget import n_drop, row_capacity

STAGES = ("read", "decode", "resize", "prompt", "pack", "batch")
PIPELINE = "pipeline"
SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}
MB = 1e6
VOCAB = 512  # rows of a tokenizer that is trained on the data's own text
TEXTS = 200  # records whose text it is trained on
STAMP = 12  # tokens of a frame that are not cells: markers and a time


@dataclass(frozen=True)
class StageRow:
    """One line of the result. The contract of the JSON file: names stay, more may come.

    what            a stage, or "pipeline"
    workers         decoding threads of the pipeline, 0: everything in the caller's; None for stages
    seconds         of one row, median over rounds, and quartiles in `spread`
    per_s           rows a second; `frames_per_s` and `mb_per_s` (of the arrays of a batch) likewise
    share           of all stages' seconds, within a round; None for the pipeline
    speedup         of the pipeline over the one with the first number of workers, within a round; None for stages
    fed             step seconds over the seconds that a batch takes: 1 or more keeps the step fed; None without a step
    """

    what: str
    workers: int | None
    seconds: float
    spread: tuple[float, float]
    per_s: float
    frames_per_s: float
    mb_per_s: float
    share: float | None
    speedup: float | None
    fed: float | None

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LoadingSettings:
    """The arguments of the command by their names.

    data, split, data_dir   a dataset, a JSONL file or a folder of video files
    frames, max_fps, size   of a video at most, frames a second at most, height and width of a frame
    sampling                the rule by which frames are chosen
    cells, pruned_fraction  of a frame, and the share of them that the model removes
    videos, text, rows      in a row at most, room for text in a row (tokens), rows of a batch
    tokenizer               a directory, None: one that is trained on the data's text
    the others              as in `LoadingPlan`
    """

    data: str
    split: str
    data_dir: str | None
    frames: int
    max_fps: float
    sampling: str
    size: int
    cells: int
    pruned_fraction: str
    videos: int
    text: int
    rows: int
    tokenizer: str | None
    workers: Sequence[int]
    records: int
    batches: int
    rounds: int
    step_s: float | None
    seed: int

    def config(self, folder: str) -> DataConfig:
        """Of the pipeline; what a folder of videos holds is listed in `folder`."""
        frames = self.frames * self.videos
        kept = row_capacity(frames, self.pruned_fraction, self.cells, self.videos)
        source = (file_source(self.data, folder), 1.0, self.split, self.data_dir or DEFAULT_DATA_DIR)
        return data_config(
            sources=(source,),
            max_frames=self.frames,
            max_fps=self.max_fps,
            sampling=self.sampling,
            image_size=self.size,
            cells=self.cells,
            fraction=self.pruned_fraction,
            frames_per_row=frames,
            items_per_row=self.videos,
            row_length=kept + STAMP * frames + self.text,
            rows=self.rows,
            seed=self.seed,
        )

    def read_tokenizer(self, config: DataConfig, folder: str) -> Tokenizer:
        """The one that is given, or one that is trained on the text of the first records and kept in `folder`."""
        if self.tokenizer:
            return Tokenizer.load(self.tokenizer)
        records, texts = open_source(config.sources[0]), []
        for index in range(min(len(records), TEXTS)):
            try:
                texts += [f"user\n{user_text(m)}\nassistant\n{target_text(m)}" for m in records[index].messages]
            except RecordError:  # counted where it is measured
                continue
        return train_tokenizer(texts, folder, VOCAB)


def run(settings: LoadingSettings, command: str, say: Callable[[str], None], path: PathLike | None) -> None:
    """The whole measurement: prints a table and writes `path`, if any. Raises ValueError with one sentence."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings.config(folder)
        tokenizer = settings.read_tokenizer(config, folder)
        counts = settings.workers, settings.records, settings.batches, settings.rounds, settings.step_s
        rows = measure(LoadingPlan(config, *counts), tokenizer, say)
    where, shape = place(command), config.row_shape
    if path:
        names = ("data", "records", "batches", "rounds", "seed", "step_s")
        sizes = {"frames": shape.frames, "size": shape.size, "row_length": shape.length, "rows": config.rows}
        given = {"k": settings.pruned_fraction, **{name: getattr(settings, name) for name in names}}
        head = {**where, **given, "sizes": sizes, **versions()}
        write_json(path, {**head, "rows": [row.as_json() for row in rows]})
    height, width = shape.size
    title = f"{settings.data}: rows of {shape.frames} frames at {width} x {height}, {where['host']}"
    table = stage_table(rows)
    if settings.step_s is not None:
        table.caption = f"fed: a step of {settings.step_s:g} s over the seconds of a batch of {config.rows} rows"
        table.caption_justify = "left"
    show(title, table)


@dataclass(frozen=True)
class LoadingPlan:
    """What to measure: `records` for the stages of a round, at least `batches` for each pipeline, `workers`."""

    config: DataConfig
    workers: Sequence[int]
    records: int
    batches: int
    rounds: int
    step_s: float | None = None


def measure(plan: LoadingPlan, tokenizer: Tokenizer, say: Callable[[str], None]) -> list[StageRow]:
    """Stages, then pipelines. One round before the first warms up and is not counted. Raises ValueError for data of
    which no record can be used.
    """
    source = open_source(plan.config.sources[0])
    stages, pipelines, frames, size = [], [], 0.0, 0.0
    for number in range(-1, plan.rounds):
        begun = time.perf_counter()
        stage = _stage_seconds(plan, source, tokenizer, max(number, 0))
        whole = []
        # Begins with another number of workers each round, as what ran before leaves its traces.
        turns = [(max(number, 0) + i) % len(plan.workers) for i in range(len(plan.workers))]
        for turn in turns:
            seconds, frames, size = _pipeline_seconds(plan, tokenizer, plan.workers[turn])
            whole.append((turn, seconds))
        if number >= 0:
            stages.append(stage)
            pipelines.append([seconds for _, seconds in sorted(whole)])
        else:
            say(f"a round takes about {time.perf_counter() - begun:.1f} s; {plan.rounds} to go")
    return _rows(plan, np.array(stages), np.array(pipelines), frames, size)


def file_source(path: str, folder: str) -> str:
    """The name of the data source for a JSONL file, or for a folder of video files, which are listed in `folder`.

    Other names come back as they are. Every video gets one question, so that prompts are made as in training.
    """
    if Path(path).is_file():
        return f"jsonl:{path}"
    if not Path(path).is_dir():
        return path
    videos = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not videos:
        raise ValueError(f"{path}: holds no video file; known are {', '.join(sorted(SUFFIXES))}")
    message = {"question": "What happens in this video?", "answer": "something", "style": "video_short_answer"}
    lines = [json.dumps({"video": str(video.resolve()), "messages": [message]}) for video in videos]
    listing = Path(folder) / "videos.jsonl"
    listing.write_text("\n".join(lines) + "\n")
    return f"jsonl:{listing}"


def stage_table(rows: Sequence[StageRow]) -> Table:
    """One line a stage, one a number of workers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    for name in ("workers", "ms a row", "quartiles", "rows/s", "frames/s", "MB/s", "share", "speed-up", "fed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.what,
            "" if row.workers is None else str(row.workers),
            f"{row.seconds * 1e3:.3g}",
            f"{row.spread[0] * 1e3:.3g} - {row.spread[1] * 1e3:.3g}",
            f"{row.per_s:.3g}",
            f"{row.frames_per_s:.3g}",
            f"{row.mb_per_s:.3g}",
            "" if row.share is None else f"{row.share:.1%}",
            "" if row.speedup is None else f"{row.speedup:.2f} x",
            "" if row.fed is None else f"{row.fed:.2f} {'yes' if row.fed >= 1 else 'NO'}",
        )
    return table


def _rows(plan: LoadingPlan, stages: np.ndarray, pipelines: np.ndarray, frames: float, size: float) -> list[StageRow]:
    """stages [rounds, stages] and pipelines [rounds, workers], seconds of a row; frames and bytes of a row."""

    def row(what: str, seconds: np.ndarray, **fields: Any) -> StageRow:
        middle, *spread = quartiles(seconds)
        rates = {"per_s": 1 / middle, "frames_per_s": frames / middle, "mb_per_s": size / MB / middle}
        nothing = {"workers": None, "share": None, "speedup": None, "fed": None}
        return StageRow(what=what, seconds=middle, spread=(spread[0], spread[1]), **{**nothing, **rates, **fields})

    shares = np.median(stages / stages.sum(axis=1, keepdims=True), axis=0)
    found = [row(name, stages[:, i], share=float(shares[i])) for i, name in enumerate(STAGES)]
    for i, workers in enumerate(plan.workers):
        seconds = pipelines[:, i]
        speedup = float(np.median(pipelines[:, 0] / seconds))
        fed = None if plan.step_s is None else plan.step_s / (float(np.median(seconds)) * plan.config.rows)
        found.append(row(PIPELINE, seconds, workers=workers, speedup=speedup, fed=fed))
    return found


def _stage_seconds(plan: LoadingPlan, source: Records, tokenizer: Tokenizer, number: int) -> list[float]:
    """Seconds of every stage for one row; round after round goes on through the records."""
    spent = dict.fromkeys(STAGES, 0.0)
    items: list[Item] = []
    last: ValueError | None = None
    for i in range(plan.records):
        index = (number * plan.records + i) % len(source)
        try:
            items.append(_item(plan.config, source, index, tokenizer, spent))
        except RecordError as error:
            last = error
    if not items:
        raise ValueError(f"none of {plan.records} records can be used; the last one: {last}")
    rows = _timed(spent, "pack", lambda: list(pack(items, plan.config.row_shape, plan.config.packing_rows)))
    step = plan.config.rows
    _timed(spent, "batch", lambda: [batch_packed(rows[at : at + step]) for at in range(0, len(rows), step)])
    return [spent[name] / len(rows) for name in STAGES]


def _item(config: DataConfig, source: Records, index: int, tokenizer: Tokenizer, spent: dict[str, float]) -> Item:
    record = _timed(spent, "read", lambda: source[index])
    video, frames = None, np.zeros((0, *config.size, 3), np.uint8)
    if record.video is not None:
        found = _timed(spent, "decode", lambda: read_video(record, config.frame_sampling, None, config.limits))
        frames = _timed(spent, "resize", lambda: np.stack([resize(frame, config.size) for frame in found.frames]))
        video = found
    messages = record.messages[: config.max_messages or None]
    times = [] if video is None else video.times
    # What is dropped makes room: a row takes as many more tokens before pruning.
    options: dict[str, Any] = {"cells": config.cells, "subtitles": record.subtitles}
    options["limit"] = config.row_length + n_drop(len(frames), config.fraction, config.cells)
    example = _timed(spent, "prompt", lambda: build_example(tokenizer, times, messages, **options))
    return Item(example, frames)


def _timed(spent: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
    before = time.perf_counter()
    result = work()
    spent[stage] += time.perf_counter() - before
    return result


def _pipeline_seconds(plan: LoadingPlan, tokenizer: Tokenizer, workers: int) -> tuple[float, float, float]:
    """(seconds, frames, bytes) of a row; the batch that starts the pipeline is not counted. Without workers the caller
    does everything, when it is needed.
    """
    rows = plan.config.rows * plan.batches
    config = dataclasses.replace(plan.config, cache=False)
    with closing(train_batches(config, tokenizer, threads=workers)) as batches:
        next(batches)
        before = time.perf_counter()
        taken = [next(batches) for _ in range(plan.batches)]
        seconds = time.perf_counter() - before
    frames = sum(int((batch["frame_item"] >= 0).sum()) for batch in taken)
    size = sum(value.nbytes for batch in taken for value in batch.values())
    return seconds / rows, frames / rows, size / rows
