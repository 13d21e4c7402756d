"""Your own questions about your own videos: the task `jsonl:PATH` asks what `data.sources.jsonl` reads."""

from sttts_jax.evals.answers import score_by_style
from sttts_jax.evals.tasks.task import Task


def jsonl_task(path: str) -> Task:
    """Multiple choice by option, anything else by the equality of normalised texts."""
    return Task(f"jsonl:{path}", f"jsonl:{path}", "", max_new_tokens=32, score=score_by_style)
