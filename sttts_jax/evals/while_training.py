"""The evaluations of a run that trains: its live parameters answer questions, as those of a checkpoint would."""

from typing import Any

from sttts_jax.data.sources.registry import open_source
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.open import checkpoint_of
from sttts_jax.train.config import RunConfig
from sttts_jax.train.run import Evaluate, Run


def evaluator(config: RunConfig) -> Evaluate:
    """A `train.run.Evaluator`. Touches no device.

    Raises ValueError for a task that does not exist, and where its questions are missing.
    """
    for task in map(find_task, config.evaluation.tasks):
        open_source(task_source(task, config.data))
    return _WhileTraining()


class _WhileTraining:
    """Questions and compiled programs are made at the first call and kept; parameters are not."""

    def __init__(self) -> None:
        self._harness: Harness | None = None
        self._questions: list[Questions] = []

    def __call__(self, run: Run, step: int, params: Any) -> dict[str, float]:
        """Accuracies of all tasks, the share of cells kept, and the questions that could not be asked.

        `params` stay where they are: the model answers on the mesh that it is trained on.
        """
        if self._harness is None:
            self._open(run)
        assert self._harness is not None
        config = run.config.evaluation
        harness, metrics = self._harness, {}
        harness.reload(step, params)
        setting = harness.checkpoint.setting(config.fraction or None, config.max_frames or None)
        for questions in self._questions:
            result, _ = harness.run(questions, setting)
            name = questions.task.name
            metrics[config.accuracies[name]] = result.overall.accuracy.value
            metrics[f"eval/{name}/kept_share"] = result.kept_share
            metrics[f"eval/{name}/bad_questions"] = float(len(result.bad))
        harness.checkpoint.release()
        return metrics

    def _open(self, run: Run) -> None:
        config, evaluation = run.config, run.config.evaluation
        checkpoint = checkpoint_of(
            config, run.raw_config, run.workdir, run.tokenizer, _nothing, step=0, place=lambda: run.mesh
        )
        self._harness = Harness(checkpoint, evaluation.batch)
        for task in map(find_task, evaluation.tasks):
            source = task_source(task, config.data)
            questions = Questions(task, source, run.tokenizer, config.data, evaluation.limit or None)
            self._questions.append(questions)


def _nothing(mesh: Any) -> Any:
    raise AssertionError("the parameters of a run that trains are given to every evaluation")
