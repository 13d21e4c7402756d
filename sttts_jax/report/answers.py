"""What was asked of a checkpoint and what it said: a line for a person after each answer, and a record for programs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from sttts_jax.evals import prose
from sttts_jax.infer.checkpoint import Checkpoint
from sttts_jax.infer.generate import GenerationConfig
from sttts_jax.infer.scene import Answer, Scene


def summary(scene: Scene, answer: Answer) -> str:
    """What was kept of the scene and how fast the answer came, in one line."""
    return "; ".join(_summary_parts(scene, answer))


def _summary_parts(scene: Scene, answer: Answer) -> Iterator[str]:
    kept, everything = scene.cells
    if scene.frames:
        yield f"{scene.frames} frames, {kept:,} of {everything:,} vision tokens kept ({scene.kept_share:.1%})"
    if scene.image_tokens:
        yield f"{scene.image_tokens:,} vision tokens of images"
    yield f"prompt {scene.prompt_tokens:,} tokens before the question"
    rate = "" if answer.tokens_per_s is None else f", then {answer.tokens_per_s:.3g} tokens/s"
    yield f"first token after {prose.seconds(answer.first_token_s)}{rate}"
    yield f"{len(answer.tokens)} tokens" + ("" if answer.stopped else ", cut at --max_new_tokens")
    if answer.compile_s:
        yield f"compiled before that in {prose.seconds(answer.compile_s)}"


def session_record(
    checkpoint: Checkpoint, generation: GenerationConfig, scenes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """JSON of everything: who was asked and how, and the `scene_record` of each scene."""
    about = {"checkpoint": checkpoint.directory, "step": checkpoint.step, "method": checkpoint.pruning.method}
    return {**about, "generation": dataclasses.asdict(generation), "scenes": scenes}


def scene_record(scene: Scene, answers: Sequence[Answer]) -> dict[str, Any]:
    """JSON of one scene: how it was seen, and the fields of `Answer` of each question."""
    kept, everything = scene.cells
    return {
        "video": scene.name if scene.frames else None,
        "frames": scene.frames,
        "times": scene.times.tolist(),
        "vision_tokens": everything,
        "vision_tokens_kept": kept,
        "kept_share": scene.kept_share,
        "image_tokens": scene.image_tokens,
        "prompt_tokens": scene.prompt_tokens,
        "pruned_fraction": scene.setting.fraction,
        "answers": [dataclasses.asdict(answer) for answer in answers],
    }
