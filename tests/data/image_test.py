"""The resize against values worked out by hand."""

import tracemalloc

import numpy as np
import pytest

from sttts_jax.data.image import resize


def _line(*values: int) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[None, :, None], 3, 2)


def _columns(image: np.ndarray) -> list[int]:
    return image[0, :, 0].tolist()


def test_enlarging_uses_half_pixel_centres() -> None:
    # 2 -> 4: centres at -0.25 (held at 0), 0.25, 0.75, 1.25 (held at 1)
    assert _columns(resize(_line(0, 100), (1, 4))) == [0, 25, 75, 100]


def test_shrinking_does_not_average() -> None:
    # 4 -> 2: centres at 0.5 and 2.5; 8 -> 2: 1.5 and 5.5, so six of eight pixels are not looked at
    assert _columns(resize(_line(0, 100, 200, 40), (1, 2))) == [50, 120]
    assert _columns(resize(_line(9, 0, 100, 9, 9, 20, 40, 9), (1, 2))) == [50, 30]


def test_rounding_is_half_to_even() -> None:
    # middle of 0 and 1 is 0.5 -> 0; of 1 and 2 is 1.5 -> 2; of 254 and 255 is 254.5 -> 254
    assert _columns(resize(_line(0, 1, 1, 2, 254, 255), (1, 3))) == [0, 2, 254]


def test_both_axes() -> None:
    image = np.asarray([[[0], [40]], [[80], [200]]], np.uint8)
    # rows at -0.25 -> 0, 0.25, 0.75, 1; e.g. (0.25, 0.75): 0.75 * 30 + 0.25 * 170 = 65
    expected = [[0, 10, 30, 40], [20, 35, 65, 80], [60, 85, 135, 160], [80, 110, 170, 200]]
    assert resize(image, (4, 4))[..., 0].tolist() == expected


def test_odd_ratio_against_the_formula() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (13, 7, 3), dtype=np.uint8)
    out = resize(image, (5, 11))
    for i, j in np.ndindex(5, 11):
        y, x = max((i + 0.5) * 13 / 5 - 0.5, 0), max((j + 0.5) * 7 / 11 - 0.5, 0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, 12), min(x0 + 1, 6)
        fy, fx = y - y0, x - x0
        exact = (1 - fy) * ((1 - fx) * image[y0, x0] + fx * image[y0, x1]) + fy * (
            (1 - fx) * image[y1, x0] + fx * image[y1, x1]
        )
        assert np.abs(out[i, j] - exact).max() <= 0.5 + 1e-3


def test_very_wide_and_very_tall_pictures() -> None:
    """Columns that are not looked at are cut out first; the result is that of the transposed picture."""
    wide = np.random.default_rng(0).integers(0, 256, (2, 5000, 3), dtype=np.uint8)
    across, down = resize(wide, (6, 7)), resize(wide.swapaxes(0, 1), (7, 6))
    assert np.array_equal(across, down.swapaxes(0, 1))
    huge = np.broadcast_to(np.asarray([[[1, 2, 3]]], np.uint8), (1, 20_000_000, 3))
    tracemalloc.start()
    assert (resize(huge, (300, 300)) == [1, 2, 3]).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e7


def test_same_size_is_a_copy_and_nonsense_is_refused() -> None:
    image = _line(1, 2)
    out = resize(image, (1, 2))
    assert np.array_equal(out, image) and out is not image
    for bad in (image.astype(np.float32), image[0], np.zeros((0, 2, 3), np.uint8)):
        with pytest.raises(ValueError, match="non-empty uint8 image"):
            resize(bad, (2, 2))


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(480, 640), (100, 37), (377, 379), (1080, 1920), (756, 756), (2, 3000)])
def test_against_torch(shape: tuple[int, int]) -> None:
    """One level off where the mix lies within float32 noise of a half, nowhere else."""
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    want = torch.nn.functional.interpolate(x, (378, 378), mode="bilinear", align_corners=False, antialias=False)
    want = want.round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    off = np.abs(resize(picture, (378, 378)).astype(int) - want)
    assert off.max() <= 1 and (off > 0).mean() <= 1e-4
