"""Prompts and rows with images: layout, windows, and that the model sees each example as if it were alone."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sttts_jax.data.config import DataConfig, Source
from sttts_jax.data.crops import crop_image, read_image
from sttts_jax.data.packing import Item, fill_rate, fill_row, lengths, stack
from sttts_jax.data.prompt import build_example, build_prefix, build_question
from sttts_jax.data.reader import Reader
from sttts_jax.data.record import Message, Record, RecordError
from sttts_jax.data.schema import PREFIX_SEGMENT, RowShape, check_batch, empty_rows
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.models.vlm import Vlm
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.config import PruneConfig
from tests.data.whole_prompts import build_prompt
from tests.models.small import CFG
from tests.weights import random_weights

ASK, TELL = Message("What is it?", "red", "user_qa"), Message("And?", "a cup", "user_qa")
SIZE = GRID = (4, 4)  # a pixel a patch, as in CFG; 2 x 2 = 4 cells and windows of a frame
crop = functools.partial(crop_image, size=SIZE, grid=GRID, margins=(1, 1))
SHAPE = RowShape(frames=10, items=3, length=180, fraction="0.5", cells=4, size=SIZE, crops=6, windows=40, grid=GRID)


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _item(tokenizer: Tokenizer, images: list[tuple[int, int, int]], frames: int, messages: list[Message]) -> Item:
    """images: (height, width, max_crops) of each."""
    seen = [crop(_picture(h, w, i), max_crops=most) for i, (h, w, most) in enumerate(images)]
    example = build_example(tokenizer, np.arange(frames) / 2, messages, cells=4, images=seen)
    pictures = [image.crops for image in seen] + [_picture(4, 4 * frames, 9).reshape(4, frames, 4, 3).swapaxes(0, 1)]
    return Item(example, np.concatenate(pictures))


def test_layout_of_images_and_a_video(tokenizer: Tokenizer) -> None:
    """A canvas of 1 x 2 tiles of 2 patches and a margin of 2 has 4 x 6 patches, so 2 x 3 windows."""
    images = [crop(_picture(4, 6), max_crops=2), crop(_picture(9, 9), max_crops=0)]
    assert images[0].grid == (2, 3) and len(images[0].crops) == 3
    example = build_prompt(tokenizer, [0, 0.5], ASK, cells=4, images=images)
    patch, user = "<im_patch>", "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    low, frame = f"<low_res_im_start>{patch * 4}<im_end>", f"<frame_start>{patch * 4}<frame_end>"
    high = f"<im_start>{f'{patch * 3}<im_col>' * 2}<im_end>"
    text = tokenizer.decode(example.tokens, skip_special=False)
    assert text == f"<|im_end|>Image 1{low}{high}Image 2{low}0.0 {frame} 0.5 {frame}{user}"
    assert (example.frames, example.crops, example.pictures) == (2, (3, 1), 6)
    # 6 pictures of 4 cells: windows are numbered from 24, the cells of the frames after the 4 crops from 16
    assert example.cells[example.cells >= 0].tolist() == [*range(24, 38), *range(16, 24)]
    assert np.array_equal(example.cells >= 0, example.tokens == tokenizer.ids[patch])
    vision = 2 * (4 + 2) + 2 + 2 * (3 + 1) + 2 * (4 + 2)
    assert example.vision.sum() == vision
    assert example.pooling.shape == (14, 4) and example.pooling[-4:].tolist() == (images[1].pooling + 3 * 16).tolist()
    assert example.pooling[:10].tolist() == images[0].pooling.tolist()


def test_one_image_has_no_number_and_numbers_are_encoded_apart(tokenizer: Tokenizer) -> None:
    image = crop(_picture(3, 3), max_crops=0)
    block = [tokenizer.ids[t] for t in ("<low_res_im_start>", *["<im_patch>"] * 4, "<im_end>")]
    one = build_prefix(tokenizer, [], cells=4, images=[image])
    two = build_prefix(tokenizer, [], cells=4, images=[image] * 2)
    assert one.tokens.tolist() == [tokenizer.bos, *block]
    assert two.tokens.tolist() == [
        *(tokenizer.bos, *tokenizer.encode("Image 1"), *block, *tokenizer.encode("Image 2"), *block)
    ]
    whole = build_prompt(tokenizer, [], ASK, cells=4, images=[image] * 2)
    assert whole.tokens.tolist() == [*two.tokens, *build_question(tokenizer, ASK)]
    assert two.crops == whole.crops == (1, 1) and np.array_equal(two.pooling, whole.pooling)
    assert one.alive("0.5", 4) == len(one.tokens)


def test_a_tree_of_questions_about_images(tokenizer: Tokenizer) -> None:
    example = build_example(tokenizer, [], [ASK, TELL], cells=4, images=[crop(_picture(5, 5), max_crops=4)])
    assert (example.segment[example.vision] == PREFIX_SEGMENT).all() and not example.weights[example.vision].any()
    assert set(example.segment) == {PREFIX_SEGMENT, 0, 1}


def test_one_row_by_hand(tokenizer: Tokenizer) -> None:
    a = _item(tokenizer, [(9, 9, 0)], 2, [ASK])
    b = _item(tokenizer, [(4, 6, 2), (3, 3, 0)], 0, [ASK])
    c = _item(tokenizer, [], 3, [TELL])
    row = fill_row([a, b, c], SHAPE)
    assert row["frame_item"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 4]
    assert row["frame_prunable"].tolist() == [False, True, True] + [False] * 4 + [True] * 3
    assert np.array_equal(row["frames"], np.concatenate([x.frames for x in (a, b, c)]))
    windows = [*range(40, 44), *range(4, 12), *range(44, 58), *range(28, 40)]  # windows begin at F * C = 40
    assert row["cells"][row["cells"] >= 0].tolist() == windows
    shifted = np.where(b.example.pooling >= 0, b.example.pooling + 3 * 16, -1)  # behind three pictures of a
    assert np.array_equal(row["pooling"][:18], np.concatenate([a.example.pooling, shifted]))
    assert (row["pooling"][18:] == -1).all()
    batch = stack([row])
    check_batch(batch, SHAPE)
    kept = n_kept(2, "0.5", 4) + n_kept(3, "0.5", 4) + 5 * 4
    tokens = sum(len(x.example.tokens) for x in (a, b, c)) - (10 * 4 - kept)
    assert fill_rate(batch, SHAPE) == {"frames": 1, "cells": kept / SHAPE.kept, "tokens": tokens / SHAPE.length}


_TALKS = st.tuples(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4)), max_size=2), st.integers(0, 6)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_TALKS, min_size=1, max_size=6), st.sampled_from(["0", "0.3", "0.5", "0.9"]))
def test_any_mix_keeps_every_promise(tokenizer: Tokenizer, talks: list[Any], fraction: str) -> None:
    """What `lengths` lets into a row fits its K and U, and rows without images are as if rows had no room for them."""
    shape = RowShape(10, 3, 150, fraction, 4, SIZE, crops=6, windows=40, grid=GRID)
    plain = RowShape(10, 3, 150, fraction, 4, SIZE)
    taken: dict[str, int] = {}
    items: list[Item] = []
    limits = {"frames": 10, "alive": 150, "crops": 6, "windows": 40}  # without K and U: those must follow
    for images, frames in talks:
        item = _item(tokenizer, images, frames, [ASK])
        try:
            more = lengths(item.example, shape)
        except RecordError:
            continue
        sums = {name: taken.get(name, 0) + n for name, n in more.items()}
        if all(sums[name] <= most for name, most in limits.items()) and len(items) < shape.items:
            items, taken = [*items, item], sums
    assert taken.get("kept", 0) <= shape.kept and taken.get("unpruned", 0) <= shape.unpruned
    row = fill_row(items, shape)
    check_batch(stack([row]), shape)
    if not any(item.example.crops for item in items):
        want = fill_row(items, plain)
        assert "pooling" not in want and all(np.array_equal(row[name], want[name]) for name in want)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 9), st.sampled_from(["0", "0.3", "0.5", "0.75", "0.9"]))
def test_the_capacity_is_what_the_fullest_row_keeps(frames: int, items: int, crops: int, fraction: str) -> None:
    """Against every way to share the frames of a row among crops and up to `items` videos."""
    crops = min(crops, frames)
    shape = RowShape(frames, items, 9, fraction, 4, SIZE, crops=crops, windows=min(crops, 1), grid=GRID)

    @functools.cache
    def most(left: int, videos: int) -> int:
        if not left or not videos:
            return 0
        return max(n_kept(t, fraction, 4) + most(left - t, videos - 1) for t in range(left + 1))

    assert shape.kept == max(4 * c + most(frames - c, items) for c in range(crops + 1))


def test_rows_without_room_for_images_refuse_them(tokenizer: Tokenizer) -> None:
    item = _item(tokenizer, [(9, 9, 0)], 0, [ASK])
    with pytest.raises(RecordError, match="has images, for which rows have no room; set crops_per_row above 0"):
        lengths(item.example, RowShape(10, 3, 150, "0.5", 4, SIZE))
    for images, message in (
        ([(9, 9, 4), (9, 9, 1)], "takes 7 crops and a row has 6; raise crops_per_row or lower max_crops"),
        ([(9, 9, 0)] * 11, "takes 11 frames and a row has 10; raise frames_per_row or lower max_crops"),
    ):
        with pytest.raises(RecordError, match=message):
            lengths(_item(tokenizer, images, 0, [ASK]).example, SHAPE)
    few = RowShape(10, 3, 150, "0.5", 4, SIZE, crops=6, windows=13, grid=GRID)
    with pytest.raises(RecordError, match="takes 14 windows and a row has 13; raise windows_per_row"):
        lengths(_item(tokenizer, [(4, 6, 2), (9, 9, 0)], 0, [ASK]).example, few)
    for wrong in ({"crops": 11}, {"windows": 0}, {"crops": 0}, {"crops": -1}):
        with pytest.raises(ValueError, match="crops are some of the frames, and both are 0 or neither"):
            RowShape(**{**SHAPE.__dict__, **wrong})
    with pytest.raises(ValueError, match="give the model's image size and grid"):
        RowShape(**{**SHAPE.__dict__, "grid": (3, 3)})


def test_the_reader_makes_examples_of_images(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Image.fromarray(_picture(40, 20)).save(tmp_path / "a.png")
    file = str(tmp_path / "a.png")
    records = [
        Record("a", None, (ASK, TELL), images=(file,)),
        Record(
            "b",
            encode_mp4(_picture(8 * 16, 16).reshape(8, 16, 16, 3), 4),
            (ASK,),
            images=((tmp_path / "a.png").read_bytes(),),
        ),
        Record("c", None, (ASK,), images=(file, b"no picture")),
    ]
    size = (60, 60)
    shape = RowShape(16, 2, 900, "0.5", 81, size, crops=10, windows=500, grid=(20, 20))
    rows = {"frames_per_row": 16, "items_per_row": 2, "row_length": 900, "image_size": size, "grid": (20, 20)}
    config = DataConfig((Source("set"),), max_frames=4, max_crops=2, bad_share=1.0, cache=True, **rows)
    reader = Reader(dataclasses.replace(config, crops_per_row=10, windows_per_row=500), [records], tokenizer)
    a, b = reader((0, 0, 1)), reader((0, 1, 2))
    assert a is not None and b is not None
    image = crop_image(read_image(file), size, (20, 20), 2)
    assert a.example.crops == b.example.crops == (len(image.crops),) and b.example.frames == 4
    assert np.array_equal(a.frames, image.crops) and np.array_equal(b.frames[: len(image.crops)], image.crops)
    check_batch(stack([fill_row([a, b], shape)]), shape)
    assert reader((0, 2, 3)) is None
    assert list(reader.bad.named) == [(0, 2)]
    assert reader.bad.named[0, 2].startswith("c, image 2: cannot be read as an image")
    plain = Reader(config, [records], tokenizer)
    assert plain((0, 0, 1)) is None
    assert plain.bad.named[0, 0] == "a: has images, for which rows have no room; set crops_per_row above 0"


def test_settings_of_images() -> None:
    config = DataConfig(sources=("x",), frames_per_row=20, crops_per_row=9).check()
    assert (config.row_shape.crops, config.row_shape.windows) == (9, 1024)  # 9 * 196 would be more than tokens of a row
    assert dataclasses.replace(config, windows_per_row=700).row_shape.windows == 700
    assert DataConfig(sources=("x",)).row_shape == RowShape(16, 4, 1024, "0.5", 81, (378, 378))
    for wrong, message in (
        ({"crops_per_row": 8}, "data.crops_per_row=8 cannot hold an image of max_crops=8 tiles and the global crop"),
        ({"crops_per_row": 21}, "data.frames_per_row=20 cannot hold crops_per_row=21; raise it"),
        ({"crops_per_row": 0, "windows_per_row": 4}, "data.windows_per_row=4 needs crops_per_row above 0"),
        ({"max_crops": -1}, "data.max_crops=-1 must be a whole number from 0 up"),
        ({"sampling": "best"}, "data.sampling='best' is unknown; choose one of molmo2, transformers"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **wrong).check()


def _broken(tokenizer: Tokenizer, name: str) -> dict[str, np.ndarray]:
    items = [_item(tokenizer, [(9, 9, 0)], 2, [ASK]), _item(tokenizer, [(4, 6, 2)], 0, [ASK])]
    batch = stack([fill_row(items, SHAPE)])
    changed = {
        "cells": lambda x: np.where(x == 41, 40, x).astype(np.int32),
        "frame_prunable": lambda x: x & (np.arange(10) != 2),
        "frame_item": lambda x: np.where(x == 2, 1, x).astype(np.int32),
        "pooling": lambda x: np.where(x == 5, 16, x).astype(np.int32),  # a patch of the video
    }
    return {**batch, name: changed[name](batch[name])}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells", "windows of images must have one token each, in order"),
        ("frame_prunable", "either frames of a video or crops of an image"),
        ("frame_item", "either frames of a video or crops of an image"),
        ("pooling", "pooling must point to patches of image crops"),
    ],
)
def test_the_checker_names_what_is_wrong(tokenizer: Tokenizer, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(_broken(tokenizer, name), SHAPE)


def test_the_checker_counts_windows_and_crops(tokenizer: Tokenizer) -> None:
    batch = stack([fill_row([_item(tokenizer, [(9, 9, 0)], 0, [ASK])], SHAPE)])
    batch["pooling"][0, 4] = 0
    with pytest.raises(ValueError, match="of the windows that have a token, and of no others"):
        check_batch(batch, SHAPE)
    with pytest.raises(ValueError, match="differing: .'pooling'"):
        check_batch(batch, RowShape(10, 3, 150, "0.5", 4, SIZE))
    few = RowShape(**{**SHAPE.__dict__, "crops": 2})
    with pytest.raises(ValueError, match="holds 3 crops of images, more than crops=2"):
        check_batch(stack([fill_row([_item(tokenizer, [(4, 6, 2)], 0, [ASK])], SHAPE)]), few)
    check_batch(empty_rows(SHAPE, 2), SHAPE)


@functools.cache
def _program() -> tuple[Any, Any]:
    model = Vlm(CFG, PruneConfig(), SHAPE.kept, SHAPE.length)
    batch = {name: jnp.asarray(value) for name, value in empty_rows(SHAPE, 1).items()}
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))["params"]
    params = random_weights(shapes)
    return jax.jit(lambda p, b: model.apply({"params": p}, b)), params


def _hidden(items: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """(hidden [S, E], example [S]) of a row; ids are folded into the model's small vocabulary."""
    run, params = _program()
    batch = stack([fill_row(items, SHAPE)])
    batch["tokens"] = (batch["tokens"] % (CFG.llm.vocab + CFG.llm.extra_vocab)).astype(np.int32)
    hidden, prefix = run(params, batch)
    return np.asarray(hidden[0]), np.asarray(prefix.rows.rule.example[0])


def test_the_model_sees_each_example_as_if_alone(tokenizer: Tokenizer) -> None:
    items = [
        _item(tokenizer, [(9, 9, 0)], 2, [ASK]),
        _item(tokenizer, [], 3, [TELL]),
        _item(tokenizer, [(4, 6, 2)], 0, [ASK, TELL]),
    ]
    together, example = _hidden(items)
    for place, item in enumerate(items):
        alone, its = _hidden([item])
        assert (example == place).sum() == (its == 0).sum() > 0
        np.testing.assert_allclose(together[example == place], alone[its == 0], atol=1e-4)


def test_every_pixel_of_an_image_is_seen_and_its_order_matters(tokenizer: Tokenizer) -> None:
    item = _item(tokenizer, [(4, 6, 2)], 2, [ASK])
    base, example = _hidden([item])
    for picture in range(3):
        frames = item.frames.copy()
        frames[picture, 1, 1] ^= 255
        other, _ = _hidden([Item(item.example, frames)])
        assert np.abs(other - base)[example == 0].max() > 1e-3
