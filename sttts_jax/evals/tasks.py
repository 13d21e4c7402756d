"""Benchmarks by name: where their questions lie, how long an answer may be, and how it is judged."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sttts_jax.evals.answers import judge_by_style

# (what the model said, meta of the question) -> right, wrong, or None where nothing can be read from the answer, which
# counts as wrong. meta has id, family, question, answer, target, options, style. Pure: no randomness, no state.
Judge = Callable[[str, Mapping[str, Any]], bool | None]


@dataclass(frozen=True)
class Task:
    """name            as the user types it
    source, split   where the questions come from, a name of `data.sources.registry`
    max_new_tokens  the longest answer
    judge           of one answer
    chance          accuracy of guessing, where it is known
    """

    name: str
    source: str
    split: str
    max_new_tokens: int
    judge: Judge
    chance: float | None = None


TASKS = {
    task.name: task
    for task in (
        # Four possible answers to every question.
        Task("shapes_video_qa", "shapes_video_qa", "test", max_new_tokens=16, judge=judge_by_style, chance=0.25),
    )
}


def find_task(name: str) -> Task:
    """NAME, NAME:SPLIT for another split than the usual one, jsonl:PATH, or jsonl:PATH:train[90%:] for a part of it.

    Raises ValueError that lists them.
    """
    if not isinstance(name, str):
        raise ValueError(f"a task must be a name, such as jsonl:PATH, got {name!r}")
    base, _, rest = name.partition(":")
    own = re.fullmatch(r"(jsonl:.+?)(?::(train(?:\[.*)?))?", name, re.DOTALL)
    if own:  # your own questions about your own videos, as `data.sources.jsonl` reads them
        return Task(name, own[1], own[2] or "", max_new_tokens=32, judge=judge_by_style)
    if base not in TASKS:
        near = difflib.get_close_matches(base, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)} and jsonl:PATH"
        raise ValueError(f"there is no task {name!r}; {hint}")
    return dataclasses.replace(TASKS[base], name=name, split=rest) if rest else TASKS[base]
