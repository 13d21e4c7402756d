"""Packings are exact: equal to whole frames with the dropped keys masked, forward and gradient, whatever the scores."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.pruning.bins import plan_bins, switch_bins
from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.pack import pack_cells, unpack_cells
from sttts_jax.pruning.select import Kept, select_cells
from sttts_jax.pruning.staircase import stream_layout
from tests.pruning.cases import frame_rows, scores_like

FRAMES, WIDTH, HEADS = 5, 8, 2
GRIDS = {"divides": CellGrid((6, 6), (2, 2)), "ragged": CellGrid((7, 5), (3, 3))}
# One row of each kind: a video, two videos, a shorter video and padding.
ITEMS = ([("video", 5)], [("video", 3), ("video", 2)], [("video", 4)])
PATTERNS = ("uniform", "bursty", "adversarial")
Arrays = dict[str, jax.Array]


def _params() -> Arrays:
    shapes = {"qkv": (WIDTH, 3, HEADS, WIDTH // HEADS), "out": (HEADS, WIDTH // HEADS, WIDTH), "mlp": (WIDTH, WIDTH)}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.standard_normal((2, *s)) * 0.6, jnp.float32) for name, s in shapes.items()}


def _layers(params: Arrays, x: jax.Array, attend: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Two small transformer layers on tokens [.., D] of any layout."""

    def layer(x: jax.Array, p: Arrays) -> tuple[jax.Array, None]:
        qkv = jnp.einsum("...d,dthk->...thk", jnp.tanh(x), p["qkv"])
        x = x + jnp.einsum("...hk,hkd->...d", attend(qkv), p["out"])
        return x + jnp.tanh(x @ p["mlp"]), None

    return jax.lax.scan(layer, x, params)[0]


def _masked(qkv: jax.Array, visible: jax.Array) -> jax.Array:
    """The plain definition: whole frames [B, F, C, W, 3, H, d], invisible keys at minus infinity."""
    batch, frames, cells, window, _, heads, dim = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, frames, cells * window, 3, heads, dim), 3, 0)
    logits = jnp.einsum("bfqhd,bfkhd->bfhqk", q, k) / np.sqrt(dim)
    logits = jnp.where(visible.reshape(batch, frames, 1, 1, -1), logits, -1e9)
    out = jnp.einsum("bfhqk,bfkhd->bfqhd", jax.nn.softmax(logits, axis=-1), v)
    return out.reshape(batch, frames, cells, window, heads, dim)


class Case:
    """Inputs of one grid and share; scores of a pattern decide which cells live."""

    def __init__(self, grid: str, fraction: str, items: tuple = ITEMS):
        self.grid, self.fraction = GRIDS[grid], as_fraction(fraction)
        self.capacity = row_capacity(FRAMES, fraction, self.grid.cells, items=2)
        self.rows = frame_rows(*items, frames=FRAMES)
        shape = (len(items), FRAMES, self.grid.cells, self.grid.window, WIDTH)
        rng = np.random.default_rng(1)
        # What stands in empty slots must not matter.
        self.x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        real = np.ones((self.grid.cells, self.grid.window), bool) if self.grid.filled is None else self.grid.filled
        self.real = jnp.asarray(real)
        self.cotangent = jnp.asarray(rng.standard_normal(shape) * real[..., None], jnp.float32)
        self.params = _params()

    def kept(self, pattern: str) -> Kept:
        rows = range(self.x.shape[0])
        scores = np.stack([scores_like(pattern, FRAMES, self.grid.cells, seed) for seed in rows])
        return jax.jit(select_cells, static_argnums=(2, 3))(scores, self.rows, self.fraction, self.capacity)

    def result(self, tokens: jax.Array, kept: Kept) -> tuple[jax.Array, jax.Array]:
        """(loss, tokens) with zeros in dropped cells and empty slots."""
        tokens = jnp.where((kept.mask[..., None] & self.real)[..., None], tokens, 0)
        return jnp.sum(tokens * self.cotangent), tokens

    def masked(self, params: Arrays, x: jax.Array, kept: Kept, extra: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The definition; `extra` bool [B, F, C] are dropped cells that stay visible."""
        visible = (kept.mask | extra)[..., None] & self.real
        return self.result(_layers(params, x, lambda qkv: _masked(qkv, visible)), kept)

    def staircase(self, params: Arrays, x: jax.Array, kept: Kept) -> tuple[jax.Array, jax.Array]:
        layout = stream_layout(kept, self.grid.filled)
        tokens = layout.stream(_layers(params, layout.pack(x), layout.attend))
        return self.result(unpack_cells(tokens, kept), kept)

    def bins(self, params: Arrays, x: jax.Array, kept: Kept, refill: bool = False) -> tuple[jax.Array, jax.Array]:
        rung, layouts = switch_bins(kept, refill, self.grid.filled)

        def run(make: Callable[[], Any]) -> jax.Array:
            layout = make()
            return layout.stream(_layers(params, layout.pack(x), layout.attend))

        tokens = jax.lax.switch(rung, [functools.partial(run, make) for make in layouts])
        return self.result(unpack_cells(tokens, kept), kept)


def _with_gradient(function: Callable) -> Callable:
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))


@functools.cache
def _reference(grid: str) -> Callable:
    return _with_gradient(Case(grid, "0").masked)


def _assert_same(got: Any, want: Any, atol: float = 2e-5) -> None:
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol * scale, rtol=1e-5), got, want)


def _shares() -> list:
    """Every share on one grid, and on the other where there is time."""
    grids = list(GRIDS)
    pairs = [(k, grids[(i + j) % 2], j) for j in (0, 1) for i, k in enumerate(("0.3", "0.5", "0.7", "0.9"))]
    return [pytest.param(k, grid, marks=[pytest.mark.slow] * j, id=f"{k}-{grid}") for k, grid, j in pairs]


@pytest.mark.parametrize(("fraction", "grid"), _shares())
@pytest.mark.parametrize("packing", ["staircase", "bins"])
def test_packed_equals_masked(packing: str, fraction: str, grid: str) -> None:
    case = Case(grid, fraction)
    packed, reference = _with_gradient(getattr(case, packing)), _reference(grid)
    for pattern in PATTERNS:
        kept = case.kept(pattern)
        (_, tokens), grads = packed(case.params, case.x, kept)
        (_, want), want_grads = reference(case.params, case.x, kept, jnp.zeros_like(kept.mask))
        _assert_same(tokens, want)
        _assert_same(grads, want_grads)
    assert not packed(case.params, case.x, kept)[1][1][~kept.mask].any(), "no gradient to dropped cells"


def test_refill_shows_dropped_cells_to_frames_alone_in_a_bin_and_to_no_others() -> None:
    case = Case("ragged", "0.5")
    refilled = _with_gradient(functools.partial(case.bins, refill=True))
    plain = jax.jit(case.staircase)
    seen = set()
    for pattern in PATTERNS:
        kept = case.kept(pattern)
        alone = _alone(kept)
        extra = jnp.asarray(alone[..., None]) & ~kept.mask
        (_, tokens), grads = refilled(case.params, case.x, kept)
        (_, want), want_grads = _reference("ragged")(case.params, case.x, kept, extra)
        _assert_same(tokens, want)
        _assert_same(grads, want_grads)
        moved = np.abs(tokens - plain(case.params, case.x, kept)[1]).max(axis=(2, 3, 4)) > 1e-3
        np.testing.assert_array_equal(moved, alone & ~np.asarray(kept.mask.all(axis=-1)))
        seen |= set(moved.reshape(-1))
    assert seen == {True, False}


def _first_fit(kept: Kept) -> list[list[int]]:
    """Bins of frames of the batch, from the paper's words: largest first, each into the first bin with room."""
    counts = np.asarray(kept.mask.sum(axis=-1)).reshape(-1)
    bins: list[list[int]] = []
    for frame in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if counts[frame]:
            room = (b for b in bins if counts[b].sum() + counts[frame] <= kept.mask.shape[-1])
            chosen = next(room, None)
            if chosen is None:
                bins.append([frame])
            else:
                chosen.append(frame)
    return bins


def _alone(kept: Kept) -> np.ndarray:
    alone = np.zeros(kept.mask.shape[0] * kept.mask.shape[1], bool)
    alone[[b[0] for b in _first_fit(kept) if len(b) == 1]] = True
    return alone.reshape(kept.mask.shape[:2])


@pytest.mark.parametrize("fraction", ["0.3", "0.5", "0.7", "0.9"])
def test_bins_are_first_fit_decreasing(fraction: str) -> None:
    case = Case("divides", fraction)
    plan = jax.jit(plan_bins, static_argnums=1)
    for pattern in PATTERNS:
        kept = case.kept(pattern)
        made, cells = plan(kept, False), case.grid.cells
        bins = _first_fit(kept)
        assert made.used == len(bins)
        target = np.asarray(made.target).reshape(-1, cells)
        inside = np.asarray(kept.mask).reshape(-1, cells)
        for number, frames in enumerate(bins):
            places = np.concatenate([target[frame][inside[frame]] for frame in frames])
            np.testing.assert_array_equal(places, number * cells + np.arange(len(places)))


def test_a_frame_changes_no_other_frame() -> None:
    """Bitwise, in the staircase: attention never leaves a frame."""
    case = Case("divides", "0.5")
    run = jax.jit(lambda x, kept: case.staircase(case.params, x, kept)[1])
    for pattern in PATTERNS:
        kept = case.kept(pattern)
        before = np.asarray(run(case.x, kept))
        for frame in range(FRAMES):
            after = np.asarray(run(case.x.at[:, frame].add(1.0), kept))
            others = np.arange(FRAMES) != frame
            np.testing.assert_array_equal(after[:, others], before[:, others])
            assert frame or (after[:, 0] != before[:, 0]).any()


def test_a_row_does_not_see_its_neighbours() -> None:
    """Bitwise within one program, and to rounding against a batch of one."""
    case = Case("divides", "0.5")
    run = jax.jit(lambda x, kept: case.staircase(case.params, x, kept)[1])
    kept, other = case.kept("uniform"), case.kept("adversarial")
    together = run(case.x, kept)
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), kept, other)
    np.testing.assert_array_equal(run(case.x.at[1:].add(1.0), mixed)[0], together[0])
    alone = Case("divides", "0.5", items=ITEMS[:1])
    by_itself = jax.jit(alone.staircase)(case.params, case.x[:1], jax.tree.map(lambda a: a[:1], kept))[1]
    np.testing.assert_allclose(by_itself[0], together[0], atol=1e-5)


def test_pack_and_unpack_are_transposes() -> None:
    """<pack x, y> = <x, unpack y> in whole numbers, and each is the other's gradient."""
    case = Case("divides", "0.7")
    kept = case.kept("bursty")
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.integers(-9, 9, case.x.shape), jnp.float32)
    y = jnp.asarray(rng.integers(-9, 9, (3, case.capacity, *case.x.shape[3:])), jnp.float32)
    packed, back = jax.vjp(lambda x: pack_cells(x, kept), x)
    unpacked, forth = jax.vjp(lambda y: unpack_cells(y, kept), y)
    assert jnp.vdot(packed, y) == jnp.vdot(x, unpacked)
    np.testing.assert_array_equal(back(y)[0], unpacked)
    np.testing.assert_array_equal(forth(x)[0], packed)
    np.testing.assert_array_equal(unpack_cells(packed, kept), jnp.where(kept.mask[..., None, None], x, 0))


def test_the_gradient_of_the_staircase_scatters_nothing() -> None:
    case = Case("ragged", "0.5")
    kept = case.kept("uniform")
    lowered = jax.jit(jax.grad(lambda *a: case.staircase(*a)[0], argnums=(0, 1))).lower(case.params, case.x, kept)
    for text in (lowered.as_text(), lowered.compile().as_text()):
        assert "gather" in text and not re.search(r"\bscatter\b|select_and_scatter|stablehlo.scatter", text)
