"""The bound: by hand, and against XLA's own count of what the scopes really run."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.bench.bound import SCOPES, pass_flops, scope_flops
from sttts_jax.bench.distributions import make_scores
from sttts_jax.bench.scopes import SCOPE_CLASSES, BenchShapes
from sttts_jax.models import flops
from sttts_jax.models.config import VitConfig
from sttts_jax.models.presets import preset
from sttts_jax.pruning.staircase import stairs

# Segments of one block each: XLA counts the body of a loop once.
VIT = VitConfig(
    width=256,
    heads=4,
    head_dim=64,
    mlp=1024,
    layers=3,
    patch=8,
    grid=(6, 6),
    cell=(2, 2),
    feature_layers=(2, 1),
    prune_after=0,
)
SHAPES = BenchShapes(VIT, frames=4, batch=2, dtype=jnp.float32)
HALF = Fraction(1, 2)


def _xla(function: Any, args: Any) -> float:
    # The count is made before LLVM polishes the code, which takes most of the time.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*args).compile(compiler_options=options).cost_analysis()["flops"]


def _scores() -> np.ndarray:
    return make_scores("bursty", 0, SHAPES.batch, SHAPES.frames, VIT.cells, HALF)


def test_one_layer_by_hand() -> None:
    vit = preset("molmo2-4b").vit
    counts = np.array([[81, 40, 41]])
    dense = 2 * (4 * 1152 * 1152 + 2 * 1152 * 4304)
    want = 162 * 9 * dense + 4 * 1152 * ((81 * 9) ** 2 + (40 * 9) ** 2 + (41 * 9) ** 2)
    assert scope_flops("layer", vit, counts, 3, 1) == pytest.approx(want, rel=1e-12)
    full = 3 * (729 * dense + 4 * 1152 * 729**2)
    assert scope_flops("layer", vit, None, 3, 1) == pytest.approx(full, rel=1e-12)
    assert scope_flops("tail", vit, counts, 3, 1) == pytest.approx(20 * want, rel=1e-12)
    assert scope_flops("tail", vit, None, 3, 2) == pytest.approx(2 * 20 * full, rel=1e-12)


def test_tower_by_hand() -> None:
    vit = preset("molmo2-4b").vit
    counts = np.array([[81, 40, 41], [81, 81, 0]])
    block = flops.vit_block_flops
    full = block(vit, 3 * 729, 3 * 729**2)
    tail = sum(block(vit, 9.0 * row.sum(), 81.0 * np.square(row).sum()) for row in counts)
    embedding = 2 * 3 * 729 * 588 * 1152
    want = 2 * (embedding + 5 * full + flops.scorer_flops(vit, 3)) + 20 * tail
    assert scope_flops("tower", vit, counts, 3, 2) == pytest.approx(want, rel=1e-12)
    assert scope_flops("tower", vit, None, 3, 2) == pytest.approx(2 * (embedding + 25 * full), rel=1e-12)
    train = 2 * (2 * embedding + 4 * 5 * full + 3 * flops.scorer_flops(vit, 3)) + 4 * 20 * tail
    assert pass_flops("train", "tower", vit, counts, 3, 2, "full") == pytest.approx(train, rel=1e-12)


def test_the_known_bound_of_a_layer() -> None:
    vit = preset("molmo2-4b").vit
    counts = np.array([[81] + [38] * 12 + [37] * 3])  # 648 survivors of 16 frames, as even as can be
    assert counts.sum() == 648
    bound = scope_flops("layer", vit, None, 16, 1) / scope_flops("layer", vit, counts, 16, 1)
    assert bound == pytest.approx(2.10, abs=0.02)


def test_unknown_scope() -> None:
    with pytest.raises(ValueError, match="no scope is called 'head'"):
        scope_flops("head", VIT, None, 4, 1)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("what", ["forward", "train"])
def test_unpruned_scopes_cost_what_xla_counts(scope: str, what: str) -> None:
    function, args = SCOPE_CLASSES[scope](SHAPES).baseline(what == "train")
    want = pass_flops(what, scope, VIT, None, SHAPES.frames, SHAPES.batch, "none")
    # Norms, softmax and GELU are what the arithmetic leaves out.
    assert want <= _xla(function, args) <= 1.05 * want


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("what", ["forward", "train"])
def test_pruned_scopes_cost_what_xla_counts_with_slots_for_frames(scope: str, what: str) -> None:
    instance = SCOPE_CLASSES[scope](SHAPES)
    function = instance.variant(what == "train", HALF, "staircase")
    counted = _xla(function, instance.arguments(HALF, "staircase", _scores()))
    kept = np.asarray(SHAPES.keep(_scores(), HALF).mask.sum(axis=-1))
    least = pass_flops(what, scope, VIT, kept, SHAPES.frames, SHAPES.batch, "none")
    # The dense parts run on survivors alone; attention runs on the slots, which hold every distribution.
    slots = np.concatenate([np.full(n, c) for n, c in stairs(SHAPES.frames, SHAPES.capacity(HALF), VIT.cells)])
    extra = SHAPES.batch * np.square(slots).sum() - np.square(kept).sum()
    passes = 1 if what == "forward" else 3
    padding = passes * 4 * VIT.window**2 * VIT.heads * VIT.head_dim * extra
    assert padding > 0
    assert least + padding <= counted <= 1.05 * (least + padding)
