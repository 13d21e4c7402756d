"""Rows of frames: what is first, what is a video, and shapes that do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.pruning.frame_rows import CELL_AXES, FrameRows
from tests.pruning.cases import frame_rows

ROWS = frame_rows([("video", 2), ("image", 1)], [("image", 1), ("video", 3)], frames=4)


def test_kinds_of_frames() -> None:
    np.testing.assert_array_equal(ROWS.valid, [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(ROWS.video, [[1, 1, 0, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(ROWS.first, [[1, 0, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(("axes", "shape"), [("C", (2, 4, 9)), (CELL_AXES, (2, 4, 9, 4, 8))])
def test_what_fits(axes: str, shape: tuple[int, ...]) -> None:
    ROWS.check_shape("x", shape, axes)
    for wrong in (shape[1:], (*shape, 1), (2, 5, *shape[2:]), (1, 4, *shape[2:]), ()):
        with pytest.raises(ValueError, match=r"x has shape .*, but rows of shape \(2, 4\) need \(2, 4, C"):
            ROWS.check_shape("x", wrong, axes)


def test_one_value_a_frame_in_both() -> None:
    with pytest.raises(ValueError, match=r"rows.item has shape \(2, 4\) but rows.prunable \(2,\); give one value"):
        FrameRows(ROWS.item, jnp.ones(2, bool)).check_shape("x", (2, 4, 9), "C")
