"""Scores whose survivors lie as they do in different videos: what a packing must be equally fast on.

Every distribution is a function of the seed alone. With the budget of `pruning.budget`, selection keeps:

    uniform       cells at random
    bursty        half the frames nine tenths of their cells, the rest spread evenly
    scene_cuts    shots that begin at Poisson cuts; cells of a new shot score high, later ones less and less
    adversarial   just over half of every frame it reaches (41 of 81 cells), so that no two frames fill one
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from sttts_jax.paths import PathLike, as_path
from sttts_jax.pruning.budget import n_kept

DISTRIBUTIONS = ("uniform", "bursty", "scene_cuts", "adversarial")
FROM_FILE = "scores"
Scores = Callable[[Fraction], Mapping[str, np.ndarray]]  # [B, V F, C] of every distribution at a share removed
SHOT = 8.0  # mean length of a shot, frames
FADE = 3.0  # frames in which the scores of a shot fall by e


def make_scores(name: str, seed: int, batch: int, frames: int, cells: int, fraction: Fraction) -> np.ndarray:
    """float32 [B, F, C], every row another draw. Raises ValueError for a name that is not in DISTRIBUTIONS."""
    if name not in DISTRIBUTIONS:
        raise ValueError(f"no distribution is called {name!r}; use one of {', '.join(DISTRIBUTIONS)}")
    draws = [np.random.default_rng((seed, row)) for row in range(batch)]
    return np.stack([_row(name, rng, frames, cells, fraction) for rng in draws])


def scores_by_name(
    names: Sequence[str],
    seed: int,
    batch: int,
    videos: int,
    frames: int,
    cells: int,
    fixed: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Scores [B, V F, C] of rows of several videos, every video another draw; `fixed` ones by name in their place."""

    def draw(name: str, fraction: Fraction) -> np.ndarray:
        if fixed and name in fixed:
            return fixed[name]
        scores = make_scores(name, seed, batch * videos, frames, cells, fraction)  # [B V, F, C]
        return scores.reshape(batch, videos * frames, cells)

    return lambda fraction: {name: draw(name, fraction) for name in names}


def _row(name: str, rng: np.random.Generator, frames: int, cells: int, fraction: Fraction) -> np.ndarray:
    noise = rng.random((frames, cells), np.float32)
    if name == "uniform":
        return noise
    if name == "scene_cuts":
        cut = rng.random(frames) < 1 - np.exp(-1 / SHOT)
        cut[0] = True
        start = np.maximum.accumulate(np.where(cut, np.arange(frames), 0))
        return noise + np.exp(-(np.arange(frames) - start) / FADE).astype(np.float32)[:, None]
    plan = _bursty if name == "bursty" else _adversarial
    counts = plan(rng, frames, cells, n_kept(frames, fraction, cells))
    # The best counts[f] cells of a frame rank above every other cell of the row: selection keeps exactly those.
    rank = np.argsort(np.argsort(-noise, axis=1), axis=1)
    return noise + (rank < counts[:, None])


def _bursty(rng: np.random.Generator, frames: int, cells: int, total: int) -> np.ndarray:
    counts, left = _first_whole(frames, cells, total)
    many = round(0.9 * cells)
    order = 1 + rng.permutation(frames - 1)
    busy = order[: min(frames // 2, left // many)]
    counts[busy] = many
    left = _pour(counts, left - many * len(busy), order[len(busy) :], cells)
    _pour(counts, left, busy, cells)
    return counts


def _adversarial(rng: np.random.Generator, frames: int, cells: int, total: int) -> np.ndarray:
    counts, left = _first_whole(frames, cells, total)
    half = cells // 2 + 1
    order = 1 + rng.permutation(frames - 1)
    # What is too little for more than half of one frame goes to one frame all the same.
    reached = order[: max(left // half, 1)]
    counts[reached] = min(half, left)
    left = _pour(counts, left - int(counts[reached].sum()), reached, cells)
    _pour(counts, left, order, cells)  # a frame of a few cells is soon full
    return counts


def _first_whole(frames: int, cells: int, total: int) -> tuple[np.ndarray, int]:
    """Counts with all cells of frame 0 and none of the others, and how many survivors are left to place."""
    counts = np.zeros(frames, np.int64)
    counts[0] = cells
    return counts, total - cells


def _pour(counts: np.ndarray, amount: int, where: np.ndarray, cells: int) -> int:
    """Adds `amount` to the frames `where` as evenly as their room allows; returns what found no room."""
    while amount > 0 and (room := where[counts[where] < cells]).size:
        share, rest = divmod(amount, len(room))
        more = np.minimum(share + (np.arange(len(room)) < rest), cells - counts[room])
        counts[room] += more
        amount -= int(more.sum())
    return amount


def file_scores(path: PathLike, frames: int, grid: tuple[int, int]) -> np.ndarray:
    """float32 [F, C] from the `scores` [*, rows, columns] of a file of `sttts-jax score --out FILE.npz`.

    A longer video gives `frames` of its frames, spread evenly. Raises ValueError when the file has no scores, fewer
    frames, or another grid of cells.
    """
    try:
        with as_path(path).open("rb") as file, np.load(file) as arrays:
            scores = np.asarray(arrays["scores"], np.float32) if "scores" in arrays else None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise ValueError(
            f"--scores {path} is not an .npz file; write one with sttts-jax score --out FILE.npz"
        ) from None
    if scores is None:
        raise ValueError(f"--scores {path} holds no scores; its checkpoint has no scorer, so take one that has")
    if scores.ndim != 3 or scores.shape[1:] != grid:
        raise ValueError(f"--scores {path} has cells {scores.shape[1:]}, the model {grid}; take scores of such a model")
    if len(scores) < frames:
        raise ValueError(f"--scores {path} has {len(scores)} frames; give --frames {len(scores)} or less")
    chosen = np.round(np.linspace(0, len(scores) - 1, frames)).astype(int)
    return scores[chosen].reshape(frames, -1)
