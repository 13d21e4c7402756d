"""Names to tasks."""

import dataclasses
import difflib

from sttts_jax.evals.tasks import shapes_video_qa
from sttts_jax.evals.tasks.jsonl import jsonl_task
from sttts_jax.evals.tasks.task import Task

TASKS = {task.name: task for task in (shapes_video_qa.TASK,)}


def find_task(name: str) -> Task:
    """NAME, NAME:SPLIT for another split than the usual one, or jsonl:PATH. Raises ValueError that lists them."""
    base, _, rest = name.partition(":")
    if base == "jsonl" and rest:
        return jsonl_task(rest)
    if base not in TASKS:
        near = difflib.get_close_matches(base, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)} and jsonl:PATH"
        raise ValueError(f"there is no task {name!r}; {hint}")
    return dataclasses.replace(TASKS[base], name=name, split=rest) if rest else TASKS[base]
