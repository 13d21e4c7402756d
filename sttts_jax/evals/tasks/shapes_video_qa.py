"""The made-up clips of `data.sources.shapes_video_qa`: six families, four possible answers to every question."""

from sttts_jax.evals.answers import score_by_style
from sttts_jax.evals.tasks.task import Task

TASK = Task("shapes_video_qa", "shapes_video_qa", "test", max_new_tokens=16, score=score_by_style, chance=0.25)
