"""The three things that `bench pruning` times, made of the package's own modules: a block, the tail, the whole ViT.

Each gives a baseline and pruned variants as (function, arguments). Scores only enter through the arguments, so variants
that differ in nothing but their distribution share one function.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.models.config import VitConfig, cuts, stack_name
from sttts_jax.models.vit import Vit, VitOutput
from sttts_jax.models.vit_block import Block
from sttts_jax.pruning.aux_loss import temporal_loss
from sttts_jax.pruning.bins import BinLayout, bin_layout, ladder, plan_bins
from sttts_jax.pruning.budget import as_fraction, n_kept
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.layout import WholeFrames, survivors, whole_frames
from sttts_jax.pruning.select import Kept, select_cells

Function = Callable[..., Any]
Args = tuple[Any, ...]


@dataclass(frozen=True)
class BenchShapes:
    """What stays the same in a comparison: sizes, B rows of one video of F frames each, dtype of the compute."""

    vit: VitConfig
    frames: int
    batch: int
    dtype: Any
    remat: str = "none"
    seed: int = 0
    attention: str = "xla"

    @property
    def rows(self) -> FrameRows:
        """One video fills each row."""
        shape = (self.batch, self.frames)
        return FrameRows(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool))

    @property
    def grid(self) -> CellGrid:
        """Cells of a frame."""
        return self.vit.cell_grid

    def capacity(self, fraction: Fraction) -> int:
        """K."""
        return n_kept(self.frames, fraction, self.vit.cells)

    def normal(self, *shape: int) -> jax.Array:
        """Numbers [B, F, C, W, ...] like those that a block sees."""
        full = (self.batch, self.frames, self.vit.cells, self.vit.window, *shape)
        return jax.random.normal(jax.random.key(self.seed), full, self.dtype)

    def keep(self, scores: np.ndarray, fraction: Fraction) -> Kept:
        """Selection as the model does it."""
        return select(jnp.asarray(scores), self.rows, fraction, self.capacity(fraction))


select = jax.jit(select_cells, static_argnums=(2, 3))  # by scores [B, F, C], rows, the share removed, K


class Scope(Protocol):
    """One thing to time. `step` turns a forward function into the pass that is timed."""

    def baseline(self, train: bool) -> tuple[Function, Args]: ...

    def variant(self, train: bool, fraction: Fraction, packing: str) -> Function: ...

    def arguments(self, fraction: Fraction, packing: str, scores: np.ndarray) -> Args: ...


def _loss(outputs: Any) -> jax.Array:
    """A scalar whose gradient reaches every output."""
    leaves = jax.tree.leaves(outputs)
    return sum((jnp.mean(jnp.square(x.astype(jnp.float32))) for x in leaves), jnp.zeros((), jnp.float32))


def _passed(forward: Function, train: bool) -> Function:
    """The forward pass, or value and gradient to the first two arguments (parameters and input)."""
    if not train:
        return forward
    return jax.value_and_grad(lambda *args: _loss(forward(*args)), argnums=(0, 1))


class Layer:
    """One block: all frames against packed survivors, which are there already."""

    def __init__(self, shapes: BenchShapes):
        self.shapes = shapes
        self.block = Block(shapes.vit, shapes.dtype)
        self.x = shapes.normal(shapes.vit.width)
        init = jax.jit(self.block.init)
        self.params = nn.unbox(init(jax.random.key(shapes.seed), self.x[:1, :1], WholeFrames()))["params"]
        self.whole = whole_frames(shapes.grid, self.x.shape, shapes.attention)

    def _forward(self, params: Any, x: jax.Array, layout: Any) -> jax.Array:
        return self.block.apply({"params": params}, x, layout)[0]

    def baseline(self, train: bool) -> tuple[Function, Args]:
        return _passed(self._forward, train), (self.params, self.whole.pack(self.x), self.whole)

    def variant(self, train: bool, fraction: Fraction, packing: str) -> Function:
        return _passed(self._forward, train)

    def arguments(self, fraction: Fraction, packing: str, scores: np.ndarray) -> Args:
        kept = self.shapes.keep(scores, fraction)
        if packing == "staircase":
            layout, tokens = jax.jit(self._stream)(self.x, kept)
        else:
            layout, tokens = self._bins(kept)
        return self.params, tokens, layout

    def _stream(self, x: jax.Array, kept: Kept) -> tuple[Any, jax.Array]:
        layout = survivors(self.shapes.grid, kept, self.shapes.attention)
        return layout, layout.pack(x)

    def _bins(self, kept: Kept) -> tuple[BinLayout, jax.Array]:
        """The smallest rung that fits, chosen here: the model carries all rungs, and switches."""
        plan = jax.jit(plan_bins, static_argnums=1)(kept, False)
        batch, frames, cells = kept.mask.shape
        rungs = ladder(batch * frames, batch * kept.ids.shape[-1], cells)
        rung = min(r for r in rungs if r >= int(plan.used))
        layout = jax.jit(bin_layout, static_argnums=2)(kept, plan, rung, self.shapes.grid.filled)
        return layout, jax.jit(lambda layout, x: layout.pack(x))(layout, self.x)


class Tail:
    """Packing and all blocks after the drop, against the same blocks on all frames."""

    def __init__(self, shapes: BenchShapes):
        self.shapes = shapes
        self.x = shapes.normal(shapes.vit.width)
        params = _vit_params(shapes, PruneConfig(method="none"))
        stacks = [stack_name(first, end) for first, end in cuts(shapes.vit) if first >= shapes.vit.head_layers]
        self.params = {name: params[name] for name in stacks}
        # The module reads its position embedding whatever runs; the tail adds none.
        self.unused = {"position_embedding": jnp.zeros_like(params["position_embedding"])}

    def _vit(self, prune: PruneConfig) -> Vit:
        return _vit(self.shapes, prune)

    def _full(self, params: Any, x: jax.Array) -> Any:
        return self._vit(PruneConfig(method="none")).apply({"params": {**params, **self.unused}}, x, method=_all_blocks)

    def _pruned(self, params: Any, x: jax.Array, kept: Kept, *, prune: PruneConfig) -> Any:
        return self._vit(prune).apply({"params": {**params, **self.unused}}, x, kept, method=_pruned_blocks)

    def baseline(self, train: bool) -> tuple[Function, Args]:
        return _passed(self._full, train), (self.params, self.x)

    def variant(self, train: bool, fraction: Fraction, packing: str) -> Function:
        return _passed(functools.partial(self._pruned, prune=prune_config(fraction, packing)), train)

    def arguments(self, fraction: Fraction, packing: str, scores: np.ndarray) -> Args:
        return self.params, self.x, self.shapes.keep(scores, fraction)


def _all_blocks(vit: Vit, x: jax.Array) -> dict[int, jax.Array]:
    """The blocks after the drop on whole frames: features by layer."""
    whole = whole_frames(vit.grid, x.shape, vit.attention)
    return vit.run_blocks(whole.pack(x), whole, vit.cfg.head_layers, vit.cfg.layers)[1]


def _pruned_blocks(vit: Vit, x: jax.Array, kept: Kept) -> dict[int, jax.Array]:
    """Packing and the blocks after the drop on survivors: features by layer."""
    return vit.run_survivors(x, kept, whole_frames(vit.grid, x.shape, vit.attention))


def _vit(shapes: BenchShapes, prune: PruneConfig) -> Vit:
    return Vit(shapes.vit, prune, shapes.dtype, shapes.remat, shapes.attention)


class Tower:
    """The whole ViT with scorer, bias, selection and packing, against the ViT without; training adds the aux loss."""

    def __init__(self, shapes: BenchShapes):
        self.shapes = shapes
        self.patches = shapes.normal(3 * shapes.vit.patch**2)
        self.params = _vit_params(shapes, PruneConfig())
        self.plain = {name: leaf for name, leaf in self.params.items() if name != "scorer"}

    def _full(self, params: Any, patches: jax.Array, rows: FrameRows) -> VitOutput:
        vit = _vit(self.shapes, PruneConfig(method="none"))
        capacity = self.shapes.frames * self.shapes.vit.cells
        return vit.apply({"params": params}, patches, rows, capacity)

    def _pruned(
        self, params: Any, patches: jax.Array, rows: FrameRows, scores: jax.Array, *, prune: PruneConfig, capacity: int
    ) -> VitOutput:
        return _vit(self.shapes, prune).apply({"params": params}, patches, rows, capacity, scores=scores)

    def _passed(self, forward: Function, train: bool, weight: float) -> Function:
        if not train:
            return lambda *args: forward(*args).features
        return jax.value_and_grad(lambda *args: _with_aux(forward(*args), args[2], weight))

    def baseline(self, train: bool) -> tuple[Function, Args]:
        return self._passed(self._full, train, 0.0), (self.plain, self.patches, self.shapes.rows)

    def variant(self, train: bool, fraction: Fraction, packing: str) -> Function:
        prune = prune_config(fraction, packing)
        forward = functools.partial(self._pruned, prune=prune, capacity=self.shapes.capacity(fraction))
        return self._passed(forward, train, prune.aux_weight)

    def arguments(self, fraction: Fraction, packing: str, scores: np.ndarray) -> Args:
        return self.params, self.patches, self.shapes.rows, jnp.asarray(scores)


def _with_aux(out: VitOutput, rows: FrameRows, weight: float) -> jax.Array:
    loss = _loss(out.features)
    if out.logits is None:
        return loss
    total, count = temporal_loss(out.logits, out.scored, rows)
    return loss + weight * total / jnp.maximum(count, 1)


def prune_config(fraction: Fraction, packing: str) -> PruneConfig:
    """STTS that removes exactly `fraction`; a config holds it as a decimal."""
    text = str(float(fraction))
    assert as_fraction(text) == fraction
    return PruneConfig(fraction=text, packing=packing).check()


def _vit_params(shapes: BenchShapes, prune: PruneConfig) -> Any:
    vit = Vit(shapes.vit, prune, shapes.dtype)
    patches = jnp.zeros((1, 1, shapes.vit.cells, shapes.vit.window, 3 * shapes.vit.patch**2), shapes.dtype)
    rows = FrameRows(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    init = jax.jit(lambda key: vit.init(key, patches, rows, shapes.vit.cells))
    return nn.unbox(init(jax.random.key(shapes.seed)))["params"]


SCOPE_CLASSES: dict[str, Callable[[BenchShapes], Scope]] = {"layer": Layer, "tail": Tail, "tower": Tower}
