"""The first batch of every bucket is looked at: by the data contract, and by people."""

from collections.abc import Mapping

import numpy as np

from sttts_jax.data.contact_sheet import film_strip, stack_strips
from sttts_jax.data.schema import RowShape, check_batch

ROWS, COLUMNS, SIDE = 4, 8, 192  # most rows and frames of the picture, and about the pixels of a frame's side


def check_first_batch(batch: Mapping[str, np.ndarray], shape: RowShape) -> None:
    """Raises ValueError, naming the array and the row, unless this process's rows are what `data.schema` promises."""
    try:
        check_batch(dict(batch), shape)
    except ValueError as error:
        raise ValueError(
            f"the data pipeline made a first batch (rows at k = {shape.fraction}) that no model can read: {error}"
        ) from error


def contact_sheet(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [B, F, h, w, 3] as one picture [height, width, 3]: rows below each other, some frames of each."""
    count = min(frames.shape[1], COLUMNS)
    chosen = np.linspace(0, frames.shape[1] - 1, count).round().astype(int)
    step = max(max(frames.shape[2:4]) // SIDE, 1)
    shown = frames[:ROWS, chosen, ::step, ::step]  # [rows, columns, h, w, 3]
    return stack_strips([film_strip(row) for row in shown])
