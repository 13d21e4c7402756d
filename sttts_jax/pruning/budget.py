"""The budget: how many cells of a video live. Exact integers, on the host, before any score exists.

STTS (arXiv 2603.18004) drops floor(C * k * T) of the C * T cells of a video, first frame included in T but never
dropped itself. Every shape after the drop follows from these functions alone: the ViT, the connector, the LLM rows and
the data packer all call them.
"""

from decimal import Decimal, InvalidOperation
from fractions import Fraction

import numpy as np

LEAST = Decimal("1e-9")  # of a share above 0
MOST_FRAMES = 2**14  # of a row, and of a video: what of more fits takes minutes to find


def as_fraction(k: str | int | float | Fraction, name: str = "pruned_fraction") -> Fraction:
    """The removed share as an exact number: 0.3 means 3/10, although the float 0.3 is a little less.

    Raises ValueError unless 0 <= k < 1; `name` is what the user called k.
    """
    try:
        value = k if isinstance(k, Fraction) else Decimal(str(k))
        inside = 0 <= value < 1  # of a Decimal: as a Fraction a large exponent takes for ever
    except (InvalidOperation, ValueError):
        raise ValueError(f"{name}={k!r} is not a number; give a decimal from 0 to below 1, such as 0.5") from None
    if not inside or 0 < value < LEAST:
        raise ValueError(
            f"{name}={k} is out of range; give the share of cells to remove, 0 or from {LEAST:g} to below 1"
        )
    return Fraction(value)


def n_drop(frames: int, k: str | float | Fraction, cells: int) -> int:
    """Cells removed from a video of `frames` frames of `cells` cells: floor(cells * k * frames), never of the first.

    Beyond k = (T - 1) / T the paper's code begins to drop the first frame; here k is clamped there.
    """
    share = as_fraction(k)
    if frames <= 0:
        return 0
    return min(cells * frames * share.numerator // share.denominator, cells * (frames - 1))


def n_kept(frames: int, k: str | float | Fraction, cells: int) -> int:
    """Cells that survive of a video of `frames` frames of `cells` cells: the number of its tokens in the LLM."""
    return cells * max(frames, 0) - n_drop(frames, k, cells)


def row_capacity(frames: int, k: str | float | Fraction, cells: int, items: int = 1) -> int:
    """The most cells that up to `items` videos sharing `frames` frames can keep: the static K of a row.

    A lone frame drops nothing and each floor drops less than one cell too few, so many short videos keep more than one
    long one.
    """
    if frames < 1 or items < 1:
        raise ValueError(f"a row needs at least 1 frame and 1 item, got frames={frames}, items={items}")
    once = np.array([n_kept(t, k, cells) for t in range(frames + 1)])  # by frames, of one item; then of 2, 4, ..
    most, left = np.zeros_like(once), min(items, frames)
    while left:
        most = _shared(most, once) if left % 2 else most
        left //= 2
        once = _shared(once, once) if left else once
    return int(most[frames])


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The most that two keep together of so many frames, int [F + 1]."""
    most = a + b[0]
    for frames in range(1, len(b)):
        np.maximum(most[frames:], a[: len(a) - frames] + b[frames], out=most[frames:])
    return most
