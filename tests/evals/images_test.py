"""Questions about images, videos, both and neither in one file: each is asked as `answer` asks it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sttts_jax.data.config import DataConfig
from sttts_jax.data.crops import layout_image
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.evals.harness import Harness
from sttts_jax.evals.questions import Questions, task_source
from sttts_jax.evals.tasks import find_task
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.generate import GenerationConfig
from sttts_jax.infer.model import Model
from sttts_jax.mesh import make_mesh
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept

CELLS = preset("tiny").vit.cells
# video, images, questions of each record
RECORDS: list[tuple[str | None, list[str], list[str]]] = [
    (None, ["0.png"], ["What is it?", "Where?"]),
    ("a.mp4", [], ["What moves?"]),
    (None, [], ["What color is the sky?"]),
    ("a.mp4", ["0.png", "1.png"], ["Is it in the video?", "Why?"]),
    (None, ["absent.png"], ["Is it there?"]),
    (None, ["0.png", "1.png"], ["What differs?"]),
    (None, ["1.png"], ["What is it?"]),
    ("a.mp4", ["1.png", "0.png"], ["Which comes first?"]),
]
ASKED = [(video, images, question) for video, images, asked in RECORDS for question in asked]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    (folder / "a.mp4").write_bytes(encode_mp4(rng.integers(0, 255, (8, 48, 64, 3), np.uint8), 4))
    for number, size in enumerate(((40, 60, 3), (200, 30, 3))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"{number}.png")
    lines = [
        {"messages": [{"question": q, "answer": "red"} for q in asked], "images": images}
        | ({} if video is None else {"video": video})
        for video, images, asked in RECORDS
    ]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def _questions(checkpoint: Checkpoint, folder: Path, data: DataConfig | None = None) -> Questions:
    task = find_task(f"jsonl:{folder / 'own.jsonl'}")
    return Questions(task, task_source(task, checkpoint.data), checkpoint.tokenizer, data or checkpoint.data)


def test_each_is_answered_as_if_it_were_alone(checkpoints: dict[str, Checkpoint], folder: Path) -> None:
    one = make_mesh({"fsdp": 1}, jax.devices()[:1])
    checkpoint = dataclasses.replace(checkpoints["scorer"], place=lambda: one)
    questions = _questions(checkpoint, folder)
    result, answers = Harness(checkpoint, 2).run(questions, checkpoint.trained)
    assert [a["number"] for a in answers] == list(range(len(ASKED)))
    assert [bad["error"].rpartition("/")[2] for bad in result.bad] == ["absent.png: no such file"]
    model, length = Model(checkpoint), questions.task.max_new_tokens
    scenes = {}
    for (video, images, question), answer in zip(ASKED, answers, strict=True):
        if "error" in answer:
            continue
        frames = 4 if video else 0
        assert (answer["frames"], answer["cells"]) == (frames, frames * CELLS)
        assert answer["kept"] == (n_kept(4, "0.5", CELLS) if video else 0)
        if not video and not images:
            continue  # `answer` looks at something
        key = (video, *images)
        if key not in scenes:
            scenes[key] = model.watch(video and folder / video, images=[folder / image for image in images])
        assert scenes[key].ask(question, GenerationConfig(length)).text == answer["prediction"]
    assert len({a.get("prediction") for a in answers}) > 3, "constant answers prove little"


@pytest.mark.parametrize(("rows", "together"), [(1, 1), (2, 4), (100, 2)])
@pytest.mark.parametrize("max_crops", [0, 4])
def test_rows_have_room_for_the_images_that_are_there(
    checkpoints: dict[str, Checkpoint], folder: Path, rows: int, together: int, max_crops: int
) -> None:
    data = dataclasses.replace(checkpoints["scorer"].data, image_size=54, grid=(27, 27), cells=81)
    questions = _questions(checkpoints["scorer"], folder, data)
    plan = questions.plan(Setting("0.5", 6, 2.0, max_crops), [2, 6], rows, together)
    assert sorted(n for bucket in plan for group in bucket.groups for n in group) == list(range(len(ASKED)))
    sizes = {"0.png": (40, 60), "1.png": (200, 30)}
    crops = {name: layout_image(size, data.size, data.grid, max_crops).count for name, size in sizes.items()}
    assert max_crops == 0 or max(crops.values()) > 2
    for bucket in plan:
        videos = {ASKED[n][0] for group in bucket.groups for n in group}
        pictures = [[crops.get(name, 0) for name in ASKED[n][1]] for group in bucket.groups for n in group]
        assert bucket.frames == 6 if videos - {None} else bucket.frames in (0, 2, 6)
        assert not bucket.groups or bucket.crops == max(map(sum, pictures))
        assert all(map(sum, pictures)) or not bucket.crops or not bucket.groups
        shape = bucket.shape(data, "0.5")
        assert shape.frames == bucket.frames + bucket.crops and bool(shape.windows) == bool(bucket.crops)
    assert plan[-1].frames == 6 and plan[-1].crops == max(bucket.crops for bucket in plan)
