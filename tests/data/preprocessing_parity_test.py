"""Pixels, windows and token ids against transformers' Molmo2 processors, which need torch and torchvision.

Token ids, grids and windows are the same. Pixels are the same but for rounding: where a value of the bilinear mix lies
within float32 noise of a half, it may be one level off (of 255); the tests bound how many are.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytest.importorskip("torchvision", reason="transformers' image and video processors need torchvision")
transformers = pytest.importorskip("transformers", minversion="5.23", reason="needs the parity extra")

from PIL import Image  # noqa: E402
from transformers.models.molmo2 import image_processing_molmo2 as hf_image  # noqa: E402
from transformers.models.molmo2.processing_molmo2 import Molmo2Processor  # noqa: E402
from transformers.models.molmo2.video_processing_molmo2 import Molmo2VideoProcessor  # noqa: E402

from sttts_jax.data.crops import choose_tiling, crop_image, read_image  # noqa: E402
from sttts_jax.data.image import resize  # noqa: E402
from sttts_jax.data.prompt import user_text  # noqa: E402
from sttts_jax.data.record import Message  # noqa: E402
from sttts_jax.data.sampling import FrameSampling  # noqa: E402
from sttts_jax.data.tokenizer import Tokenizer  # noqa: E402
from sttts_jax.data.video import decode  # noqa: E402
from tests.data.whole_prompts import build_prompt  # noqa: E402

pytestmark = pytest.mark.torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SIZE, GRID = (378, 378), (27, 27)
ASK = Message("What is it?", "", "user_qa")
LEVELS = 1 / 127.5  # one level of 255 after normalisation
SHARE_OFF = 1e-4  # of pixels that may be a level off


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Molmo2Processor:
    return _processor(tokenizer, tmp_path_factory.mktemp("hf"))


def _processor(tokenizer: Tokenizer, folder: Path) -> Molmo2Processor:
    """As in the released checkpoints: no ends of rows in the global crop."""
    tokenizer.save_hf(folder)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    film = Molmo2VideoProcessor(do_rescale=True, do_normalize=True)
    return Molmo2Processor(hf_image.Molmo2ImageProcessor(), film, fast, use_single_crop_col_tokens=False)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _patches(pictures: np.ndarray) -> np.ndarray:
    """uint8 [n, 378, 378, 3] -> float32 [n, 729, 588], normalised."""
    x = (pictures.astype(np.float32) / 255 * 2 - 1).reshape(len(pictures), 27, 14, 27, 14, 3)
    return x.swapaxes(2, 3).reshape(len(pictures), 729, 588)


def _check_pixels(got: np.ndarray, want: Any) -> None:
    off = np.abs(got - want.numpy())
    assert off.max() <= 1.01 * LEVELS
    share = float((off > 0.5 * LEVELS).mean())
    assert share <= SHARE_OFF, f"{share:.2e} of the pixels are a level off"
    assert off[off <= 0.5 * LEVELS].max() <= 1e-6


def _text(images: int, video: bool) -> str:
    seen = "<|image|>" if images == 1 else "".join(f"Image {i + 1}<|image|>" for i in range(images))
    turn = f"<|im_start|>user\n{user_text(ASK)}<|im_end|>\n<|im_start|>assistant\n"
    return f"{seen}{'<|video|>' * video}{turn}"


@pytest.mark.parametrize("most", [1, 8, 24])
def test_tilings(most: int) -> None:
    rng = np.random.default_rng(most)
    edges = [
        (266 * i + 112 + d, 266 * j + 112 + e) for i in (1, 2, 3) for j in (1, 4) for d in (-1, 0, 1) for e in (0, 1)
    ]
    for height, width in [*edges, *rng.integers(1, 4000, (300, 2)).tolist(), (112, 112), (112, 500), (5, 9)]:
        rows, columns, *_ = hf_image.compute_crop_geometry(height, width, most, [4, 4], 378, 14)
        assert choose_tiling((height - 112, width - 112), (266, 266), most) == (rows, columns), (height, width)


@pytest.mark.parametrize(
    "shape", [(378, 378), (1, 1), (60, 50), (480, 640), (777, 333), (300, 2500), (1200, 1900), (2240, 378)]
)
@pytest.mark.parametrize("most", [8, 24])
def test_one_image(processor: Molmo2Processor, tokenizer: Tokenizer, shape: tuple[int, int], most: int) -> None:
    picture = _noise(*shape)
    image = crop_image(picture, SIZE, GRID, most)
    want = processor(images=[Image.fromarray(picture)], text=_text(1, False), max_crops=most, return_tensors="pt")
    assert want["image_grids"].tolist() == [[14, 14, *image.grid]]
    assert want["image_num_crops"].tolist() == [len(image.crops)]
    assert np.array_equal(image.pooling, want["image_token_pooling"].numpy())
    _check_pixels(_patches(image.crops), want["pixel_values"])
    example = build_prompt(tokenizer, [], ASK, cells=81, images=[image])
    assert example.tokens.tolist() == want["input_ids"][0].tolist()
    assert example.vision.tolist() == (want["mm_token_type_ids"][0] == 1).tolist()


def test_several_images_and_a_video(processor: Molmo2Processor, tokenizer: Tokenizer) -> None:
    pictures = [_noise(500, 700, 1), _noise(300, 200, 2), _noise(500, 700, 3)]
    film = _noise(40 * 100, 120, 4).reshape(40, 100, 120, 3)
    images = [crop_image(picture, SIZE, GRID, 8) for picture in pictures]
    want = processor(
        images=[Image.fromarray(picture) for picture in pictures],
        videos=[film],
        video_metadata=[{"fps": 8.0, "total_num_frames": 40, "duration": 5.0}],
        text=_text(3, True),
        return_tensors="pt",
    )
    index = FrameSampling(64, 2).indices(40, 5.0)
    frames = np.stack([resize(film[i], SIZE) for i in index])
    _check_pixels(_patches(np.concatenate([image.crops for image in images])), want["pixel_values"])
    _check_pixels(_patches(frames), want["pixel_values_videos"])
    example = build_prompt(tokenizer, index / 8, ASK, cells=81, images=images)
    assert example.tokens.tolist() == want["input_ids"][0].tolist()
    assert example.vision.tolist() == (want["mm_token_type_ids"][0] == 1).tolist()
    assert np.array_equal(example.pooling, want["image_token_pooling"].numpy())
    assert example.crops == tuple(want["image_num_crops"].tolist())


def test_the_real_tokenizer(real_files: Path, tmp_path: Path) -> None:
    """Images, time stamps of several digits, and words, with the ids of Molmo2-4B and -8B."""
    qwen = Tokenizer.load(real_files / "tokenizer", base_size=151_936)
    pictures, film = [_noise(300, 500), _noise(400, 200)], _noise(600 * 8, 8).reshape(600, 8, 8, 3)
    want = _processor(qwen, tmp_path)(
        images=[Image.fromarray(picture) for picture in pictures],
        videos=[film],
        video_metadata=[{"fps": 4.0, "total_num_frames": 600, "duration": 150.0}],
        num_frames=6,
        text=_text(2, True),
        return_tensors="pt",
    )
    images = [crop_image(picture, SIZE, GRID, 8) for picture in pictures]
    times = FrameSampling(6, 2).indices(600, 150.0) / 4
    example = build_prompt(qwen, times, ASK, cells=81, images=images)
    assert example.tokens.tolist() == want["input_ids"][0].tolist()
    assert (
        times.tolist() == [0, 25, 50, 75, 100, 125] and (example.tokens == 151_938).sum() == (example.cells >= 0).sum()
    )


@pytest.mark.parametrize("max_fps", [2, 1, 0.7])
def test_sampled_frames(max_fps: float) -> None:
    """Indices of transformers' own sampler, of many lengths and rates. Now and then rounding gives it one index more,
    which is past the end of the video."""
    rng = np.random.default_rng(0)
    processor = Molmo2VideoProcessor()
    for _ in range(300):
        total, fps = int(rng.integers(1, 20_000)), float(rng.choice([1, 7.5, 24, 25, 29.97, 30, 60]))
        most = int(rng.choice([1, 7, 64, 128, 384]))
        metadata = transformers.video_utils.VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        want = processor.sample_frames(metadata, num_frames=most, max_fps=max_fps).tolist()
        want = [index for index in want if index < total]
        assert FrameSampling(most, max_fps).indices(total, total / fps).tolist() == want, (total, fps, most)


@pytest.mark.parametrize("name", ["bikes_scene_cuts.mp4", "sam2_cups_shell_game.mp4", "bear_vp9_odd_161x121.webm"])
def test_real_videos(real_files: Path, processor: Molmo2Processor, tokenizer: Tokenizer, name: str) -> None:
    """Both sampled here, as transformers decodes by other means; the pictures, resized and laid out, are compared."""
    path = real_files / "videos" / name
    sampling = FrameSampling(8, 2, "transformers")
    whole, seen = decode(path, sampling, size=None), decode(path, sampling, size=SIZE)
    index = np.arange(len(whole.frames))
    metadata = {
        "fps": 1.0,
        "total_num_frames": len(index),
        "duration": float(len(index)),
        "frames_indices": whole.times,
    }
    want = processor(
        videos=[whole.frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        text=_text(0, True),
        return_tensors="pt",
    )
    _check_pixels(_patches(seen.frames), want["pixel_values_videos"])
    example = build_prompt(tokenizer, seen.times, ASK, cells=81)
    assert example.tokens.tolist() == want["input_ids"][0].tolist()
    windows = np.arange(729).reshape(9, 3, 9, 3).swapaxes(1, 2).reshape(81, 9)
    assert np.array_equal(want["video_token_pooling"].numpy(), (729 * index[:, None, None] + windows).reshape(-1, 9))


def test_a_real_frame_as_an_image_file(
    real_files: Path, processor: Molmo2Processor, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    frame = decode(real_files / "videos" / "bikes_scene_cuts.mp4", FrameSampling(1), size=None).frames[0]
    Image.fromarray(frame).save(tmp_path / "a.jpg", quality=90)
    picture = read_image(tmp_path / "a.jpg")
    image = crop_image(picture, SIZE, GRID, 8)
    with Image.open(tmp_path / "a.jpg") as file:
        want = processor(images=[file], text=_text(1, False), return_tensors="pt")
    _check_pixels(_patches(image.crops), want["pixel_values"])
    example = build_prompt(tokenizer, [], ASK, cells=81, images=[image])
    assert example.tokens.tolist() == want["input_ids"][0].tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_colours(mode: str, tmp_path: Path) -> None:
    """As transformers turns an opened file of eight bits a sample into RGB; of deeper ones it makes white."""
    from transformers.image_transforms import convert_to_rgb

    picture = Image.fromarray(_noise(20, 30))
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(_noise(20, 30, 1)[..., 0]))
    else:
        picture = picture.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(path)
    with Image.open(path) as file:
        assert np.array_equal(read_image(path), convert_to_rgb(file, return_numpy=True))
