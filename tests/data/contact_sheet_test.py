"""Frames as one picture."""

import numpy as np

from sttts_jax.data.contact_sheet import film_strip, stack_strips, thumbnails


def test_frames_lie_side_by_side_and_strips_below_each_other() -> None:
    rng = np.random.default_rng(0)
    long, short = (rng.integers(0, 255, (count, 6, 5, 3), np.uint8) for count in (3, 2))
    sheet = stack_strips([film_strip(long, 2), film_strip(short, 2)], 1)
    assert sheet.shape == (2 * (6 + 1), 3 * (5 + 2), 3) and sheet.dtype == np.uint8
    for top, frames in ((0, long), (7, short)):
        for number, frame in enumerate(frames):
            left = number * 7
            np.testing.assert_array_equal(sheet[top : top + 6, left : left + 5], frame)
            sheet[top : top + 6, left : left + 5] = 255
    assert (sheet == 255).all()


def test_thumbnails_keep_the_aspect_ratio() -> None:
    frames = np.full((2, 40, 60, 3), 7, np.uint8)
    small = thumbnails(frames, 20)
    assert small.shape == (2, 20, 30, 3) and (small == 7).all()
    assert thumbnails(frames[:, :, :1], 20).shape == (2, 20, 1, 3)
