"""A checkpoint answers the questions of a task: prompts in, accuracy with intervals out.

    harness = Harness(subject, rows=32, seed=0)
    result, answers = harness.run(Questions(task, source, subject.tokenizer, subject.data.cells), subject.trained)

One question a row, greedy answers, one program a setting; short last batches are padded. Every process calls the same.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sttts_jax.data.device import to_device
from sttts_jax.data.evaluation import EvalBatch, eval_batches
from sttts_jax.data.schema import RowShape
from sttts_jax.evals.generate import Generated, generate
from sttts_jax.evals.harness_gather import gather, to_host
from sttts_jax.evals.harness_questions import Questions
from sttts_jax.evals.harness_subject import Setting, Subject
from sttts_jax.evals.results import Key, Result, Tally, pack_mask
from sttts_jax.evals.tasks.task import Task

HISTOGRAM_BINS = 20
Answer = dict[str, Any]


class _Run(NamedTuple):
    """What a setting made: answers in order, seconds without compiling, seconds and number of compilations."""

    answers: list[Answer]
    seconds: float
    compile_seconds: float
    compilations: int


class Harness:
    """Programs are kept, so that tasks that share a bucket share them. `seed` is for methods that choose at random."""

    def __init__(self, subject: Subject, rows: int, seed: int = 0):
        """Raises ValueError where the rows of a batch do not divide over the devices."""
        self.subject, self.rows, self.seed = subject, rows, seed
        self._mine = subject.layout.rows_per_process(rows)
        self._programs: dict[tuple[RowShape, int], Any] = {}

    def key(self, questions: Questions, setting: Setting) -> Key:
        """What makes a result of `run` this one and no other."""
        source = f"{questions.source.name} {questions.source.split}".strip()
        return Key(
            task=questions.task.name,
            source=source,
            records=len(questions.records),
            step=self.subject.step,
            fraction=setting.fraction,
            max_frames=setting.max_frames,
            max_fps=setting.max_fps,
            limit=questions.limit,
            seed=self.seed,
        )

    def run(self, questions: Questions, setting: Setting) -> tuple[Result, list[Answer]]:
        """(result, one answer a question). Raises ValueError when not a single question could be asked."""
        shape = questions.row_shape(self.subject.data, setting)
        run = self._run(questions, setting, shape)
        bad = [{"id": a.get("id", f"record {a['record']}"), "error": a["error"]} for a in run.answers if "error" in a]
        good = [a for a in run.answers if "error" not in a]
        if not good:
            raise ValueError(f"task {questions.task.name}: no question could be asked; the first: {bad[0]['error']}")
        key = self.key(questions, setting)
        result = Result(
            key=key,
            overall=Tally.of([a["right"] for a in good]),
            families=_families(good),
            kept_share=sum(a["kept"] for a in good) / max(sum(a["cells"] for a in good), 1),
            frames_mean=sum(a["frames"] for a in good) / len(good),
            seconds_per_question=run.seconds / len(good),
            compile_seconds=run.compile_seconds,
            compilations=run.compilations,
            row_length=shape.length,
            rows=self.rows,
            bad=bad,
            histogram=_histogram(good),
            predictions=key.file_name,
        )
        return result, [{name: value for name, value in a.items() if name != "scores"} for a in run.answers]

    def _run(self, questions: Questions, setting: Setting, shape: RowShape) -> _Run:
        subject, layout = self.subject, self.subject.layout
        batches = eval_batches(
            questions.records,
            subject.tokenizer,
            shape,
            max_frames=setting.max_frames,
            max_fps=setting.max_fps,
            rows=self.rows,
            limit=questions.limit,
            shard_index=layout.shard_index,
            shard_count=layout.shard_count,
        )
        answers: list[Answer] = []
        started, compiling, programs = time.perf_counter(), 0.0, len(self._programs)
        held: tuple[int, EvalBatch, Generated] | None = None
        with jax.set_mesh(subject.mesh):
            for number, batch in enumerate(batches):
                arrays = to_device(batch.arrays, layout.sharding(), self.rows)
                key = jax.random.fold_in(subject.key(self.seed), number)
                before = time.perf_counter()
                program = self._program(questions.task, shape, arrays, key)
                compiling += time.perf_counter() - before
                said = program(subject.params, arrays, key)
                # The device answers this batch while the host decodes the next one.
                answers += [] if held is None else self._read(questions.task, *held)
                held = (number, batch, said)
            answers += [] if held is None else self._read(questions.task, *held)
        seconds = time.perf_counter() - started - compiling
        return _Run(gather(answers), seconds, compiling, len(self._programs) - programs)

    def _program(self, task: Task, shape: RowShape, arrays: dict[str, jax.Array], key: jax.Array) -> Any:
        wanted = (shape, task.max_new_tokens)
        if wanted not in self._programs:
            model, stop = self.subject.model(shape), (self.subject.tokenizer.eos,)

            def answer(params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> Generated:
                count = task.max_new_tokens
                return generate(model, {"params": params}, batch, max_new_tokens=count, stop_ids=stop, rng=rng)

            self._programs[wanted] = jax.jit(answer).lower(self.subject.params, arrays, key).compile()
        return self._programs[wanted]

    def _read(self, task: Task, number: int, batch: EvalBatch, said: Generated) -> Iterator[Answer]:
        """This process's answers of a batch."""
        first = self.subject.layout.shard_index * self._mine
        mine = slice(first, first + self._mine)
        assert said.kept is not None  # the model has a ViT
        tokens, lengths, kept = (to_host(x)[mine] for x in (said.tokens, said.lengths, said.kept))
        scores = None if said.scores is None else to_host(said.scores)[mine]
        for row, meta in enumerate(batch.meta):
            question = {"number": number * self.rows + first + row}
            if not batch.valid[row]:
                if meta:
                    yield {**question, **meta}
                continue
            prediction = self.subject.tokenizer.decode(tokens[row, : lengths[row]].tolist()).strip()
            text = {name: meta[name] for name in ("id", "family", "question", "target", "style")}
            frames = len(meta["times"])
            yield {
                **question,
                **text,
                "prediction": prediction,
                "right": task.score(prediction, meta),
                "frames": frames,
                "kept": int(kept[row, :frames].sum()),
                "mask": pack_mask(kept[row, :frames]),
                "cells": frames * kept.shape[-1],
                "scores": None if scores is None else _count_scores(scores[row, 1:frames], kept[row, 1:frames]),
            }


def _families(answers: Sequence[Answer]) -> dict[str, Tally]:
    """By question family, in the order of their first question; questions without one are in the total only."""
    names = dict.fromkeys(a["family"] for a in answers if a["family"])
    return {name: Tally.of([a["right"] for a in answers if a["family"] == name]) for name in names}


def _count_scores(scores: np.ndarray, kept: np.ndarray) -> list[list[int]]:
    """Scores after the first frame, float [f, C]: counts of kept and of dropped cells in HISTOGRAM_BINS from 0 to 1."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return [np.histogram(part, edges)[0].tolist() for part in (scores[kept], scores[~kept])]


def _histogram(answers: Sequence[Answer]) -> dict[str, list[float]] | None:
    if any(a["scores"] is None for a in answers):
        return None
    kept, dropped = np.sum([a["scores"] for a in answers], axis=0)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return {"edges": edges.round(6).tolist(), "kept": kept.tolist(), "dropped": dropped.tolist()}
