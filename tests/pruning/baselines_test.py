"""Rankings without a scorer, against slow versions written from the paper's words; all share the exact budget."""

import functools

import jax
import numpy as np
import pytest

from sttts_jax.pruning import baselines
from sttts_jax.pruning.budget import as_fraction, n_drop
from sttts_jax.pruning.select import select_cells
from tests.pruning.cases import frame_rows, kept_of, spans

FRAMES, CELLS, WINDOW, WIDTH = 8, 6, 2, 4
MIXES = [
    [("video", 8)],
    [("video", 3), ("image", 1), ("video", 4)],
    [("video", 5), ("video", 1)],
    [("image", 2), ("video", 6)],
]
ROWS = frame_rows(*MIXES, frames=FRAMES)


def _film(change: float, seed: int) -> np.ndarray:
    """Float32 [B, F, C, W, D]: cells drift by `change` of their length a frame, each at its own pace, with one cut."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((len(MIXES), FRAMES, CELLS, WINDOW, WIDTH))
    pace = change * rng.random((len(MIXES), 1, CELLS, 1, 1)) * 2
    for frame in range(1, FRAMES):
        x[:, frame] = x[:, frame - 1] + pace[:, 0] * x[:, frame]
    x[:, 5] += 3 * rng.standard_normal(x[:, 5].shape)  # nothing like the frame before
    return x.astype(np.float32)


FILMS = {change: _film(change, seed) for seed, change in enumerate((0.05, 0.3, 0.6, 1.5))}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _drop(candidates: list[tuple], budget: int, mask: np.ndarray) -> None:
    for *_, frame, cell in sorted(candidates)[:budget]:
        mask[frame, cell] = False


def _slow_easy(film: np.ndarray, fraction: str) -> np.ndarray:
    """Most similar to the previous frame goes first; a frame whose mean similarity is under 0.85 goes last."""
    mask, order = np.ones((len(film), CELLS), bool), []
    for t in range(1, len(film)):
        similar = [_cosine(film[t, c], film[t - 1, c]) for c in range(CELLS)]
        exempt = np.mean(similar) < 0.85
        # Of equals the later cell goes first; there are none here.
        order += [(exempt, -similar[c], t, c) for c in range(CELLS)]
    _drop(order, n_drop(len(film), fraction, CELLS), mask)
    return mask


def _slow_tracking(film: np.ndarray, fraction: str) -> tuple[np.ndarray, int]:
    """(mask, how often the threshold came down). Candidates first, most similar first, then the rest likewise."""
    budget = n_drop(len(film), fraction, CELLS)
    for lowered in range(6):
        threshold = 0.85 - 0.05 * lowered
        reference, candidates, rest = list(film[0]), [], []
        for t in range(1, len(film)):
            similar = [_cosine(film[t, c], reference[c]) for c in range(CELLS)]
            scene = np.mean(similar) < threshold
            for c in range(CELLS):
                if scene or similar[c] < threshold:
                    rest.append((-similar[c], t, c))
                    reference[c] = film[t, c]
                else:
                    candidates.append((-similar[c], t, c))
        if len(candidates) >= budget:
            break
    mask = np.ones((len(film), CELLS), bool)
    _drop([(0, *x) for x in candidates] + [(1, *x) for x in rest], budget, mask)
    return mask, lowered


@functools.cache
def _program(method: str, fraction: str):
    def keep(x: jax.Array, rng: jax.Array) -> jax.Array:
        scores = {
            "easy": lambda: baselines.easy_scores(x),
            "reference_tracking": lambda: baselines.reference_tracking_scores(x, ROWS, as_fraction(fraction)),
            "random": lambda: baselines.random_scores(rng, ROWS, CELLS),
        }[method]()
        return select_cells(scores, ROWS, as_fraction(fraction), FRAMES * CELLS).mask

    return jax.jit(keep)


def _keep(method: str, fraction: str, film: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.asarray(_program(method, fraction)(film, jax.random.key(seed)))


@pytest.mark.parametrize("change", FILMS)
@pytest.mark.parametrize("fraction", ["0.3", "0.5", "0.8"])
def test_easy(fraction: str, change: float) -> None:
    got = _keep("easy", fraction, FILMS[change])
    for row, items in enumerate(MIXES):
        for kind, frames in spans(items):
            if kind == "video":
                np.testing.assert_array_equal(got[row, frames], _slow_easy(FILMS[change][row, frames], fraction))


@pytest.mark.parametrize("fraction", ["0.3", "0.5", "0.8"])
def test_reference_tracking(fraction: str) -> None:
    lowered = set()
    for film in FILMS.values():
        got = _keep("reference_tracking", fraction, film)
        for row, items in enumerate(MIXES):
            for kind, frames in spans(items):
                if kind == "video":
                    want, times = _slow_tracking(film[row, frames], fraction)
                    np.testing.assert_array_equal(got[row, frames], want)
                    lowered.add(times)
    assert len(lowered) > 1, "the films do not make the threshold come down"


def test_a_new_scene_is_exempt() -> None:
    """A still film with one cut: the frame after the cut stays whole while there is anything else to drop."""
    film = np.broadcast_to(FILMS[0.05][:, :1], FILMS[0.05].shape).copy()
    film[0, 4:] = np.random.default_rng(9).standard_normal(film[0, 4:5].shape)
    for method in ("easy", "reference_tracking"):
        assert _keep(method, "0.5", film)[0, 4].all()
        assert not _keep(method, "0.8", film)[0, [1, 2, 3]].any()


@pytest.mark.parametrize("method", ["random", "easy", "reference_tracking"])
@pytest.mark.parametrize("fraction", ["0", "0.3", "0.5", "0.8", "0.95"])
def test_the_budget_is_exact(method: str, fraction: str) -> None:
    for film in FILMS.values():
        got = _keep(method, fraction, film)
        for row, items in enumerate(MIXES):
            assert got[row].sum() == kept_of(items, as_fraction(fraction), CELLS)
            for _, frames in spans(items):
                assert got[row, frames.start].all()
        if method == "random":
            return


def test_random_follows_its_key_and_is_fair() -> None:
    film = FILMS[0.3]
    masks = np.stack([_keep("random", "0.5", film, seed)[0] for seed in range(200)])
    assert (masks[0] == _keep("random", "0.5", film, 0)[0]).all()
    assert len({m.tobytes() for m in masks}) > 190
    # 24 of the 42 cells after the first frame go, every one as often.
    np.testing.assert_allclose(masks[:, 1:].mean(axis=0), 18 / 42, atol=0.15)


def test_patches_that_are_not_in_cells_are_refused() -> None:
    patches = FILMS[0.3].reshape(len(MIXES), FRAMES, CELLS * WINDOW, WIDTH)
    with pytest.raises(ValueError, match="put patches .* into cells first, with CellGrid.to_cells"):
        baselines.reference_tracking_scores(patches, ROWS, as_fraction("0.5"))
