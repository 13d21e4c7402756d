"""The ViT with pruning inside: stacks, counts, equality with a plain version, alone, in company and with padding."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.models.config import VitConfig
from sttts_jax.models.presets import preset
from sttts_jax.models.vit import Vit, VitOutput
from sttts_jax.pruning.aux_loss import temporal_loss
from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.config import METHODS, PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.layout import whole_frames
from sttts_jax.pruning.pack import unpack_cells
from sttts_jax.pruning.select import select_cells
from sttts_jax.trees import named_leaves
from tests.models.plain_vit import plain_vit
from tests.pruning.cases import frame_rows
from tests.weights import random_weights

FRAMES = 5
CFG = VitConfig(
    width=16,
    heads=2,
    head_dim=8,
    mlp=24,
    layers=5,
    patch=2,
    grid=(6, 6),
    cell=(2, 2),
    feature_layers=(4, 0),
    prune_after=1,
).check()
RAGGED = VitConfig(**{**CFG.__dict__, "grid": (5, 4), "cell": (3, 3), "feature_layers": (3, 2)}).check()
MIX = ([("video", 5)], [("video", 3), ("video", 2)], [("image", 1), ("video", 3)])


def _patches(cfg: VitConfig, rows: int, seed: int = 0) -> jax.Array:
    grid = cfg.cell_grid
    pixels = np.random.default_rng(seed).uniform(-1, 1, (rows, FRAMES, grid.patches, cfg.patch**2 * 3))
    return grid.to_cells(jnp.asarray(pixels, jnp.float32))


def _shapes(cfg: VitConfig, prune: PruneConfig, frames: int) -> Any:
    """Shapes of the parameters."""
    grid, key = cfg.cell_grid, jax.random.key(0)
    patches = jnp.zeros((1, frames, grid.cells, grid.window, cfg.patch**2 * 3))
    rows = frame_rows([("video", frames)], frames=frames)
    init = functools.partial(Vit(cfg, prune).init, patches=patches, rows=rows, capacity=frames * grid.cells, rng=key)
    return nn.unbox(jax.eval_shape(init, key))["params"]


@functools.cache
def _params(cfg: VitConfig) -> Any:
    """Random everywhere, so that no bias or scale is trivial."""
    return random_weights(_shapes(cfg, PruneConfig(), FRAMES), seed=1)


def _capacity(cfg: VitConfig, prune: PruneConfig, images: bool = True) -> int:
    return FRAMES * cfg.cells if images else row_capacity(FRAMES, prune.removed, cfg.cells, items=2)


@functools.cache
def _program(cfg: VitConfig, prune: PruneConfig, capacity: int = 0):
    model = Vit(cfg, prune)
    capacity = capacity or _capacity(cfg, prune)
    return jax.jit(
        lambda params, patches, rows, rng=None: model.apply({"params": params}, patches, rows, capacity, rng)
    )


def _unpacked(out: VitOutput, cfg: VitConfig) -> np.ndarray:
    """Features in their places, zero in dropped cells and empty slots."""
    features = unpack_cells(out.features, out.kept)
    filled = cfg.cell_grid.filled
    return np.asarray(features if filled is None else jnp.where(filled[:, :, None], features, 0))


def test_stacks_and_counts_of_the_molmo2_vit() -> None:
    params = _shapes(preset("molmo2-4b").vit, PruneConfig(), 1)
    stacks = {name: part["norm1"]["scale"].shape[0] for name, part in params.items() if name.startswith("blocks")}
    assert stacks == {"blocks_00_03": 4, "blocks_04_04": 1, "blocks_05_18": 14, "blocks_19_24": 6}
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    scorer = count.pop("scorer")
    assert sum(count.values()) == 382_505_936
    assert scorer == 33_766_769


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("packing", ["staircase", "bins"])
def test_the_tree_does_not_depend_on_the_method(method: str, packing: str) -> None:
    got = _shapes(CFG, PruneConfig(method=method, packing=packing), FRAMES)
    shapes = {name: leaf.shape for name, leaf in named_leaves(got).items()}
    want = {name: leaf.shape for name, leaf in named_leaves(_params(CFG)).items()}
    scorer = method in ("scorer", "soft_only")
    assert shapes == {name: shape for name, shape in want.items() if scorer or not name.startswith("scorer")}


@pytest.mark.parametrize("cfg", [CFG, RAGGED], ids=["divides", "ragged"])
@pytest.mark.parametrize("method", ["scorer", "none"])
def test_scan_and_packing_equal_the_plain_version(cfg: VitConfig, method: str) -> None:
    """Layer by layer on whole frames; taps before and after the drop."""
    prune, rows, patches = PruneConfig(method=method), frame_rows(*MIX, frames=FRAMES), _patches(cfg, len(MIX))
    out = _program(cfg, prune)(_params(cfg), patches, rows)
    assert out.features.shape == (3, FRAMES * cfg.cells, cfg.window, 2 * cfg.width)
    plain = jax.jit(lambda *args: plain_vit(cfg, prune, *args).features)
    want = plain(_params(cfg), patches, rows, out.kept.mask)
    np.testing.assert_allclose(_unpacked(out, cfg), want, atol=2e-5 * np.abs(want).max())
    whole = out.kept.mask.sum() == rows.valid.sum() * cfg.cells
    assert whole == (method == "none")


def _loss(features: jax.Array, logits: jax.Array, scored: jax.Array, rows: FrameRows) -> jax.Array:
    """Some task on the features [B, F, C, ..], and the temporal loss."""
    weights = np.random.default_rng(5).standard_normal(features.shape).astype(np.float32)
    aux, count = temporal_loss(logits, scored, rows)
    return jnp.sum(features * weights) + aux / count


@functools.cache
def _gradient(prune: PruneConfig, remat: str):
    model = Vit(CFG, prune, remat=remat)

    def loss(params: Any, patches: jax.Array, rows: FrameRows) -> jax.Array:
        out = model.apply({"params": params}, patches, rows, _capacity(CFG, prune))
        return _loss(unpack_cells(out.features, out.kept), out.logits, out.scored, rows)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def _assert_close(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Each leaf against its own largest value, or 1e-3 of the largest of all: some gradients are zero but for noise."""
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))

    def check(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3 * largest))

    jax.tree.map(check, got, want)


def test_gradients_equal_the_plain_version() -> None:
    """Of every parameter, the scorer's included, and of the pixels; selection is held fixed and carries none."""
    prune, rows, patches = PruneConfig(), frame_rows(*MIX, frames=FRAMES), _patches(CFG, len(MIX))
    mask = _program(CFG, prune)(_params(CFG), patches, rows).kept.mask

    def plain(params: Any, patches: jax.Array) -> jax.Array:
        return _loss(*plain_vit(CFG, prune, params, patches, rows, mask), rows)

    want = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(_params(CFG), patches)
    _assert_close(_gradient(prune, "none")(_params(CFG), patches, rows), want)


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_remat_changes_nothing(remat: str) -> None:
    args = (_params(CFG), _patches(CFG, len(MIX)), frame_rows(*MIX, frames=FRAMES))
    _assert_close(_gradient(PruneConfig(), remat)(*args), _gradient(PruneConfig(), "none")(*args), 1e-5)


@pytest.mark.parametrize("packing", ["staircase", "bins"])
def test_videos_in_one_row_are_as_good_as_alone(packing: str) -> None:
    prune = PruneConfig(packing=packing)
    program = _program(CFG, prune)
    patches = _patches(CFG, 1)
    shifted = jnp.roll(patches, -3, axis=1)
    rows = frame_rows([("video", 3), ("video", 2)], [("video", 3)], [("video", 2)], frames=FRAMES)
    out = program(_params(CFG), jnp.concatenate([patches, patches, shifted]), rows)
    features = _unpacked(out, CFG)
    for row, here, there in ((1, slice(0, 3), slice(0, 3)), (2, slice(3, 5), slice(0, 2))):
        np.testing.assert_array_equal(out.kept.mask[0, here], out.kept.mask[row, there])
        np.testing.assert_allclose(out.logits[0, here], out.logits[row, there], atol=1e-5)
        np.testing.assert_allclose(features[0, here], features[row, there], atol=1e-4)
    assert not out.kept.mask[1, 3:].any() and not out.kept.mask[2, 2:].any()


def test_the_authors_row_crosses_items() -> None:
    """With across_items the second video's first frame sees the video before it: only that frame's scores move."""
    program = _program(CFG, PruneConfig(across_items=True))
    rows = frame_rows([("video", 3), ("video", 2)], frames=FRAMES)
    patches = _patches(CFG, 1)
    base = program(_params(CFG), patches, rows)
    other = program(_params(CFG), patches.at[:, 2].add(0.5), rows)
    moved = np.asarray(base.logits != other.logits)[0].any(axis=-1)
    np.testing.assert_array_equal(moved, [False, False, True, True, False])
    np.testing.assert_array_equal(base.kept.mask[:, 3:], other.kept.mask[:, 3:])


def _padded(fill: float) -> tuple[jax.Array, FrameRows]:
    return _patches(CFG, 2).at[:, 3:].set(fill), frame_rows([("video", 3)], [("video", 2), ("image", 1)], frames=FRAMES)


@pytest.mark.parametrize("fill", [1.0, -1.0, 1e30, np.nan])
def test_what_stands_in_padding_frames_does_not_matter(fill: float) -> None:
    """Bitwise: survivors, scores and features."""
    program = _program(CFG, PruneConfig())
    want, got = program(_params(CFG), *_padded(0.0)), program(_params(CFG), *_padded(fill))
    for a, b in (
        (want.features, got.features),
        (want.kept.mask, got.kept.mask),
        (want.logits[:, :3], got.logits[:, :3]),
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fill", [1.0, -1.0])
def test_padding_frames_have_no_gradient(fill: float) -> None:
    value, (grads, pixels) = _gradient(PruneConfig(), "none")(_params(CFG), *_padded(fill))
    want, (want_grads, want_pixels) = _gradient(PruneConfig(), "none")(_params(CFG), *_padded(0.0))
    assert value == want and not pixels[:, 3:].any()
    _assert_close((grads, pixels), (want_grads, want_pixels), 1e-6)


def test_a_batch_is_as_good_as_its_rows() -> None:
    program, rows, patches = _program(CFG, PruneConfig()), frame_rows(*MIX, frames=FRAMES), _patches(CFG, len(MIX))
    together = program(_params(CFG), patches, rows)
    for i in range(len(MIX)):
        alone = program(_params(CFG), patches[i : i + 1], FrameRows(rows.item[i : i + 1], rows.prunable[i : i + 1]))
        np.testing.assert_array_equal(alone.kept.ids[0], together.kept.ids[i])
        np.testing.assert_allclose(alone.features[0], together.features[i], atol=1e-4)


def test_removing_nothing() -> None:
    """k = 0 is method "none" for the baselines, and "soft_only" for the scorer."""
    args = (_params(CFG), _patches(CFG, len(MIX)), frame_rows(*MIX, frames=FRAMES), jax.random.key(0))
    none = _program(CFG, PruneConfig(method="none"))(*args)
    soft = _program(CFG, PruneConfig(method="soft_only"))(*args)
    for method in ("easy", "scorer"):
        got = _program(CFG, PruneConfig(method=method, fraction="0"))(*args)
        np.testing.assert_array_equal(got.features, (soft if method == "scorer" else none).features)
        np.testing.assert_array_equal(got.kept.mask, args[2].valid[..., None] & np.ones(CFG.cells, bool))
    assert (none.features != soft.features).any()


def test_random_needs_a_key() -> None:
    with pytest.raises(ValueError, match="needs a random key; pass rng="):
        _program(CFG, PruneConfig(method="random"))(_params(CFG), _patches(CFG, 1), frame_rows([], frames=FRAMES))


@pytest.mark.parametrize("method", ["scorer", "random"])
def test_given_scores_rank_the_cells_and_change_nothing_else(method: str) -> None:
    """The scorer still gives its logits and its bias; "random" needs no key."""
    prune = PruneConfig(method=method)
    model, capacity = Vit(CFG, prune), _capacity(CFG, prune)
    args = (_patches(CFG, len(MIX)), rows := frame_rows(*MIX, frames=FRAMES))
    apply = jax.jit(lambda params, *args, **more: model.apply({"params": params}, *args, capacity, **more))
    scores = np.random.default_rng(3).standard_normal((len(MIX), FRAMES, CFG.cells)).astype(np.float32)
    out = apply(_params(CFG), *args, scores=scores)
    want = select_cells(jnp.asarray(scores), rows, as_fraction("0.5"), capacity)
    np.testing.assert_array_equal(out.kept.mask, want.mask)
    own = apply(_params(CFG), *args, rng=jax.random.key(0))
    assert (own.kept.mask != out.kept.mask).any()
    if method == "scorer":
        np.testing.assert_allclose(out.logits, own.logits, atol=1e-5)
        again = apply(_params(CFG), *args, scores=own.logits)
        np.testing.assert_array_equal(again.kept.mask, own.kept.mask)
        np.testing.assert_allclose(again.features, own.features, atol=1e-4)
    with pytest.raises(ValueError, match=r"scores has shape \(3, 9\)"):
        apply(_params(CFG), *args, scores=scores[:, 0])


def test_blocks_run_in_pieces_as_in_one() -> None:
    """The doors that benches use: `run_blocks` by whole stacks, and `run_survivors` on what was selected."""
    prune = PruneConfig(method="none")
    model, patches = Vit(CFG, prune), _patches(CFG, 1)

    def pieces(vit: Vit, x: jax.Array) -> Any:
        whole = whole_frames(CFG.cell_grid, x.shape, "xla")
        one = vit.run_blocks(x, whole, 0, 5)
        middle, taps = vit.run_blocks(x, whole, 0, 3)
        last, more = vit.run_blocks(middle, whole, 3, 5)
        rows = frame_rows([("video", FRAMES)], frames=FRAMES)
        kept = select_cells(jnp.zeros((1, FRAMES, CFG.cells)), rows, as_fraction("0"), FRAMES * CFG.cells)
        with pytest.raises(ValueError, match="blocks 0 to 4 cut a stack in two; the stacks are"):
            vit.run_blocks(x, whole, 0, 4)
        return one, (last, taps | more), vit.run_survivors(middle, kept, whole)

    x = jnp.broadcast_to(jnp.asarray(patches[..., :1]), (*patches.shape[:4], CFG.width))
    params = {name: leaf for name, leaf in _params(CFG).items() if name != "scorer"}
    one, two, after = jax.jit(lambda params: model.apply({"params": params}, x, method=pieces))(params)
    assert set(one[1]) == {0, 4} and set(after) == {4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, two)
    np.testing.assert_allclose(after[4], one[1][4].reshape(after[4].shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", ["staircase", "bins"])
def test_one_compilation_for_all_inputs_of_a_bucket(packing: str) -> None:
    """50 item mixes and score distributions, up to the worst, through one program."""
    prune = PruneConfig(packing=packing)
    model, capacity = Vit(CFG, prune), _capacity(CFG, prune)
    program = jax.jit(lambda params, patches, rows: model.apply({"params": params}, patches, rows, capacity).kept.mask)
    rng, compiled, counts = np.random.default_rng(0), [], set()

    def count(name: str, duration: float, **_: Any) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    inputs = []
    for seed in range(50):
        first = int(rng.integers(1, FRAMES + 1))
        items = [("video", first), ("image" if seed % 3 else "video", FRAMES - first)]
        items = [(kind, n) for kind, n in items if n > seed % 2]
        # Frames of different contrast: some lose nearly everything, some nothing.
        scale = rng.uniform(0, 2, (1, FRAMES, 1, 1, 1)).astype(np.float32)
        inputs.append((np.asarray(_patches(CFG, 1, seed)) * scale, frame_rows(items, frames=FRAMES)))
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for patches, rows in inputs:
            mask = program(_params(CFG), patches, rows)
            counts.add(tuple(np.asarray(mask)[0].sum(axis=-1)))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(counts) > 25, "the inputs are all alike"
    assert program._cache_size() == 1 and len(compiled) == 1
