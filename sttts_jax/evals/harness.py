"""A checkpoint answers the questions of a task: prompts in, accuracy with intervals out.

    harness = Harness(checkpoint, rows=32, seed=0)
    questions = Questions(task, source, checkpoint.tokenizer, checkpoint.data)
    result, answers = harness.run(questions, checkpoint.trained)

One video a row, read once for several questions about it; greedy answers. Rows come in buckets of frames, each with one
program; short last batches are padded. Every process calls the same.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sttts_jax.data.device import to_device
from sttts_jax.data.evaluation import EvalBatch, QuestionShape, eval_batches
from sttts_jax.data.schema import RowShape
from sttts_jax.distributed import gather_json, to_host
from sttts_jax.evals.masks import pack_mask
from sttts_jax.evals.questions import TOGETHER, Questions, RowBucket, frame_ladder
from sttts_jax.evals.results import Key, Result, Tally
from sttts_jax.evals.tasks import Task
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.generate import Generated, QuestionTokens, generate
from sttts_jax.pruning.scorer import HISTOGRAM_BINS
from sttts_jax.train.kinds import check_seed

Prediction = dict[str, Any]  # one question and what was said to it: a line of the file of predictions


class _Run(NamedTuple):
    """What a setting made: answers in order, the rows they took, seconds without compiling, and of compiling."""

    answers: list[Prediction]
    buckets: list[RowBucket]
    seconds: float
    compile_seconds: float
    compilations: int


class Harness:
    """Programs are kept, so that tasks that share a bucket share them. `seed` is for methods that choose at random.

    `rows` videos are a batch, or a few more, so that all devices get equally many. `steps` are the frame counts of
    buckets, see `frame_ladder`; `together` is the most questions that share a row. Neither changes an answer, only how
    long it takes; but methods that choose at random choose for the rows of a batch.
    """

    def __init__(
        self, checkpoint: Checkpoint, rows: int, seed: int = 0, steps: Sequence[int] = (), together: int = TOGETHER
    ):
        """Raises ValueError where the rows of a batch are none, the devices cannot share out the model, and for a seed
        that is none.
        """
        check_seed(seed)
        if type(rows) is not int or rows < 1:
            raise ValueError(f"a batch of {rows!r} rows must be a whole number, at least 1")
        mesh = checkpoint.mesh.shape
        checkpoint.vlm.check_shared(mesh["tensor"] * mesh["sequence"])
        self.checkpoint, self.seed, self.steps, self.together = checkpoint, seed, steps, together
        self.rows = checkpoint.layout.filled(rows)
        self._mine = checkpoint.layout.rows_per_process(self.rows)
        self._programs: dict[tuple[RowShape, tuple[int, ...], int], tuple[Any, float]] = {}  # with seconds of compiling

    def reload(self, step: int, params: Any) -> None:
        """Other weights of the same model on the same mesh, as training makes them: programs stay."""
        self.checkpoint = dataclasses.replace(self.checkpoint, step=step, load=lambda mesh: params)

    def _key(self, questions: Questions, setting: Setting) -> Key:
        source = f"{questions.source.name} {questions.source.split}".strip()
        return Key(
            task=questions.task.name,
            source=source,
            records=len(questions.records),
            step=self.checkpoint.step,
            method=self.checkpoint.pruning.method,
            fraction=setting.fraction,
            max_frames=setting.max_frames,
            max_fps=setting.max_fps,
            max_crops=setting.max_crops,
            limit=questions.limit,
            seed=self.seed,
            sampling=setting.sampling,
        )

    def run(self, questions: Questions, setting: Setting) -> tuple[Result, list[Prediction]]:
        """(result, one answer a question). Raises ValueError when not a single question could be asked."""
        run = self._run(questions, setting, self._plan(questions, setting))
        bad = [{"id": a.get("id", f"record {a['record']}"), "error": a["error"]} for a in run.answers if "error" in a]
        good = [a for a in run.answers if "error" not in a]
        if not good:
            raise ValueError(f"task {questions.task.name}: no question could be asked; the first: {bad[0]['error']}")
        result = Result(
            key=self._key(questions, setting),
            overall=Tally.of([a["right"] for a in good]),
            families=_families(good),
            kept_share=sum(a["kept"] for a in good) / max(sum(a["cells"] for a in good), 1),
            frames_mean=sum(a["frames"] for a in good) / len(good),
            seconds_per_question=run.seconds / len(good),
            compile_seconds=run.compile_seconds,
            compilations=run.compilations,
            buckets=[
                {"frames": b.frames, "crops": b.crops, "length": b.length, "rows": len(b.groups)} for b in run.buckets
            ],
            rows=self.rows,
            bad=bad,
            histogram=_histogram(good),
        )
        return result, [{name: value for name, value in a.items() if name != "scores"} for a in run.answers]

    def _plan(self, questions: Questions, setting: Setting) -> list[RowBucket]:
        """The same on every process, whatever one of them cannot read: batches are the steps that all take together."""
        ladder = frame_ladder(setting.max_frames, self.steps)
        plan = questions.plan(setting, ladder, self.rows, self.together)
        return [RowBucket(*bucket) for bucket in gather_json(plan)[0]]

    def _run(self, questions: Questions, setting: Setting, buckets: Sequence[RowBucket]) -> _Run:
        started, before = time.perf_counter(), set(self._programs)
        answers = self._answers(questions, setting, buckets)
        # Decoding found more frames than the packets had announced: such clips are asked again, in the largest rows.
        unfit = [[number] for number, answer in answers.items() if answer.get("unfit")]
        again = [buckets[-1]._replace(groups=unfit)] if unfit and len(buckets) > 1 else []
        answers |= self._answers(questions, setting, again)
        compiling = [seconds for wanted, (_, seconds) in self._programs.items() if wanted not in before]
        seconds = time.perf_counter() - started - sum(compiling)
        plain = [{k: v for k, v in answers[number].items() if k != "unfit"} for number in sorted(answers)]
        used = [bucket for bucket in [*buckets, *again] if bucket.groups]
        return _Run(plain, used, seconds, sum(compiling), len(compiling))

    def _answers(self, questions: Questions, setting: Setting, buckets: Sequence[RowBucket]) -> dict[int, Prediction]:
        """By the number of the question, those of all processes."""
        answers: list[Prediction] = []
        held: tuple[EvalBatch, Generated] | None = None
        with jax.set_mesh(self.checkpoint.mesh):
            for number, (batch, shape) in enumerate(self._batches(questions, setting, buckets)):
                said = self._say(questions.task, shape, batch, number)
                # The device answers this batch while the host decodes the next one.
                answers += [] if held is None else self._read(questions.task, *held)
                held = (batch, said)
            answers += [] if held is None else self._read(questions.task, *held)
        return {answer["number"]: answer for told in gather_json(answers) for answer in told}

    def _batches(
        self, questions: Questions, setting: Setting, buckets: Sequence[RowBucket]
    ) -> Iterator[tuple[EvalBatch, RowShape]]:
        """This process's part of every batch; all processes have equally many of each bucket."""
        checkpoint = self.checkpoint
        for bucket in buckets:
            shape = bucket.shape(checkpoint.data, setting.fraction)
            batches = eval_batches(
                questions.records,
                checkpoint.tokenizer,
                shape,
                QuestionShape(bucket.most, bucket.longest),
                [[questions.asked[number] for number in group] for group in bucket.groups],
                checkpoint.frame_sampling(setting),
                max_crops=setting.max_crops,
                rows=self.rows,
                limits=checkpoint.data.limits,
                shard_index=checkpoint.layout.shard_index,
                shard_count=checkpoint.layout.shard_count,
            )
            yield from ((batch, shape) for batch in batches)

    def _say(self, task: Task, shape: RowShape, batch: EvalBatch, number: int) -> Generated:
        checkpoint = self.checkpoint
        arrays = {**batch.arrays, "question_tokens": batch.questions, "question_lengths": batch.lengths}
        placed = to_device(arrays, checkpoint.layout.sharding(), self.rows)
        asked = QuestionTokens(placed.pop("question_tokens"), placed.pop("question_lengths"))  # [B, Q, T], [B, Q]
        inputs = (checkpoint.params, placed, asked, jax.random.fold_in(checkpoint.key(self.seed), number))
        return self._program(task, shape, inputs)(*inputs)

    def _program(self, task: Task, shape: RowShape, inputs: tuple[Any, Any, QuestionTokens, jax.Array]) -> Any:
        """params, batch, questions, key -> Generated; one for each shape and length of answers."""
        wanted = (shape, inputs[2].tokens.shape, task.max_new_tokens)
        if wanted not in self._programs:
            model, stop = self.checkpoint.model(shape), (self.checkpoint.tokenizer.eos,)

            def answer(params: Any, batch: dict[str, jax.Array], asked: QuestionTokens, rng: jax.Array) -> Generated:
                count = task.max_new_tokens
                return generate(
                    model, {"params": params}, batch, max_new_tokens=count, stop_ids=stop, rng=rng, questions=asked
                )

            before = time.perf_counter()
            program = jax.jit(answer).lower(*inputs).compile()
            self._programs[wanted] = (program, time.perf_counter() - before)
        return self._programs[wanted][0]

    def _read(self, task: Task, batch: EvalBatch, said: Generated) -> Iterator[Prediction]:
        """This process's answers of a batch."""
        first = self.checkpoint.layout.shard_index * self._mine
        mine = slice(first, first + self._mine)
        assert said.kept is not None  # the model has a ViT
        # [b, Q, n], [b, Q], [b, F, C] of this process's b rows
        tokens, lengths, kept = (to_host(x)[mine] for x in (said.tokens, said.lengths, said.kept))
        scores = None if said.scores is None else to_host(said.scores)[mine]  # [b, F, C]
        for row, place in ((row, place) for row, group in enumerate(batch.meta) for place in range(len(group))):
            meta = batch.meta[row][place]
            if "error" in meta:
                yield meta
                continue
            said_tokens = tokens[row, place, : lengths[row, place]]
            prediction = self.checkpoint.tokenizer.decode(said_tokens.tolist()).strip()
            text = {name: meta[name] for name in ("number", "id", "family", "question", "target", "style")}
            first, frames = meta["crops"], len(meta["times"])  # the video's frames come after the crops of images
            seen, later = slice(first, first + frames), slice(first + 1, first + frames)
            yield {
                **text,
                "prediction": prediction,
                "right": task.judge(prediction, meta),
                "frames": frames,
                "kept": int(kept[row, seen].sum()),
                "mask": pack_mask(kept[row, seen]),
                "cells": frames * kept.shape[-1],
                "scores": None if scores is None else _count_scores(scores[row, later], kept[row, later]),
            }


def _families(answers: Sequence[Prediction]) -> dict[str, Tally]:
    """By question family, in the order of their first question; questions without one are in the total only."""
    names = dict.fromkeys(a["family"] for a in answers if a["family"])
    return {name: Tally.of([a["right"] for a in answers if a["family"] == name]) for name in names}


def _count_scores(scores: np.ndarray, kept: np.ndarray) -> list[list[int]]:
    """Scores after the first frame, float [f, C]: counts of kept and of dropped cells in HISTOGRAM_BINS from 0 to 1."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return [np.histogram(part, edges)[0].tolist() for part in (scores[kept], scores[~kept])]


def _histogram(answers: Sequence[Prediction]) -> dict[str, list[float]] | None:
    if any(a["scores"] is None for a in answers):
        return None
    kept, dropped = np.sum([a["scores"] for a in answers], axis=0)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    return {"edges": edges.round(6).tolist(), "kept": kept.tolist(), "dropped": dropped.tolist()}
