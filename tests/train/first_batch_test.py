"""What is looked at before the first step."""

import numpy as np
import pytest

from sttts_jax.data.schema import RowShape, empty_rows
from sttts_jax.train.first_batch import check_first_batch, contact_sheet

SHAPE = RowShape(frames=4, items=1, length=64, fraction="0.5", cells=9, size=(18, 12))


def test_a_batch_that_breaks_the_contract_is_named() -> None:
    batch = empty_rows(SHAPE, 2)
    check_first_batch(batch, SHAPE)
    batch["weights"][1, 3] = 1.0
    with pytest.raises(ValueError, match=r"a first batch \(rows at k = 0.5\) .* row 1 of the batch: targets must be 0"):
        check_first_batch(batch, SHAPE)


def test_frames_lie_side_by_side_and_rows_below_each_other() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 18, 12, 3), np.uint8)
    sheet = contact_sheet(frames)
    assert sheet.shape == (2 * 18, 3 * 12, 3) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[18:, 12:24], frames[1, 1])


def test_many_large_frames_are_a_small_picture_from_first_to_last() -> None:
    frames = np.zeros((9, 128, 400, 400, 3), np.uint8) + np.arange(128, dtype=np.uint8)[:, None, None, None]
    sheet = contact_sheet(frames)
    assert sheet.shape == (4 * 200, 8 * 200, 3)
    assert (sheet[0, 0, 0], sheet[-1, -1, 0]) == (0, 127)
