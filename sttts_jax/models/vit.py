"""The vision transformer with the pruning inside it.

    blocks 0 .. p          all patches, plain                       (p = prune_after)
    scorer                 reads the output of block p
    block p + 1            all patches, scores as attention bias
    drop, pack             survivors only from here on
    blocks p + 2 ..        survivors, attention stays inside each frame

Blocks are stacked for scan in segments that are cut where something happens: before and after the biased block, and
after each feature layer. So every run is a scan over whole parameter arrays, no slices of them are copied, and the
parameter tree depends on the architecture alone, not on the pruning method: `blocks_00_03`, `blocks_04_04`,
`blocks_05_18`, `blocks_19_24`.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.models.config import VitConfig
from sttts_jax.models.config import cuts as cuts
from sttts_jax.models.config import stack_name as stack_name
from sttts_jax.models.lora import Adapters, LoraConfig
from sttts_jax.models.vit_block import Block, Layout, dense
from sttts_jax.ops.attention.kernels import STREAM_KERNELS
from sttts_jax.ops.remat import remat_policy
from sttts_jax.pruning import baselines
from sttts_jax.pruning.bias import soft_bias
from sttts_jax.pruning.bins import switch_bins
from sttts_jax.pruning.budget import as_fraction
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.pack import FrameLayout, pack_cells
from sttts_jax.pruning.ragged import frame_plan, ragged_layout
from sttts_jax.pruning.scorer import Scorer
from sttts_jax.pruning.select import Kept, select_cells
from sttts_jax.pruning.staircase import stream_layout


class VitOutput(NamedTuple):
    """features [B, K, W, len(feature_layers) * D] of the survivors; kept; scorer logits float32 [B, F, C] or None;
    scored [B, F, C, W, D], what the scorer and the temporal loss read."""

    features: jax.Array
    kept: Kept
    logits: jax.Array | None
    scored: jax.Array


def whole_frames(grid: CellGrid, shape: tuple[int, ...], attention: str) -> FrameLayout:
    """What blocks on all patches [B, F, C, W, D] run on, with the kernels `attention`; no survivors are known yet."""
    if attention in STREAM_KERNELS:
        return FrameLayout(None, plan=frame_plan(grid, shape[0], shape[1], kernels=attention), shape=shape[1:4])
    key_mask = None if grid.filled is None else jnp.asarray(grid.filled)
    return FrameLayout(None, key_mask=key_mask, kernels=attention)


def survivors(grid: CellGrid, kept: Kept, attention: str) -> Layout:
    """What blocks after the drop run on, with the kernels `attention`: the stream without padding."""
    if attention in STREAM_KERNELS:
        return ragged_layout(kept, grid.window, grid.filled, kernels=attention)
    return stream_layout(kept, grid.filled, kernels=attention)


class Vit(nn.Module):
    """SigLIP2 with STTS. See the module docstring; the pruning methods share everything but the scores.

    `attention` names the kernels, as `ops.attention.kernels.choose_kernels` gives them; bins always take XLA's.
    """

    cfg: VitConfig
    prune: PruneConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    lora: LoraConfig | None = None

    def setup(self) -> None:
        c = self.cfg
        self.grid = CellGrid(c.grid, c.cell)
        # A model that starts from nothing should see what and where from the first step. Pixels are small (about 0.3)
        # and alike within a patch: with a gain of 6 their embedding is of the size of the positions, about one.
        position = nn.with_logical_partitioning(nn.initializers.normal(1.0), (dims.POSITION, dims.EMBED))
        patch_axes = (dims.PATCH_IN, dims.EMBED)
        self.patch_embedding = dense(c.width, -1, patch_axes, 1, self.dtype, "patch_embedding", gain=6.0)
        self.position_embedding = self.param("position_embedding", position, (self.grid.patches, c.width))
        for first, end in cuts(c):
            setattr(self, stack_name(first, end), self._stack(stack_name(first, end), end - first))
        if self.prune.scores:
            self.scorer = Scorer(c.heads, c.head_dim, c.mlp, self.prune.across_items, self.dtype)

    def _stack(self, name: str, length: int) -> nn.Module:
        policy = remat_policy(self.remat)
        block = Block if policy is None else nn.remat(Block, prevent_cse=False, policy=policy)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=length,
            metadata_params={nn.PARTITION_NAME: dims.LAYERS},
        )
        return scanned(self.cfg, self.dtype, Adapters(self.lora, f"vit/{name}"))

    def __call__(self, patches: jax.Array, rows: FrameRows, capacity: int, rng: jax.Array | None = None) -> VitOutput:
        """patches [B, F, C, W, P] normalised, window-major; rows [B, F]; `capacity` K; `rng` only for "random"."""
        x = self._embed(patches)
        whole = whole_frames(self.grid, x.shape, self.attention)
        x, taps = self._run(whole.pack(x), {}, whole, 0, self.cfg.prune_after + 1)
        scored = self._fill(whole.unpack(x))
        logits = self.scorer(scored, rows) if self.prune.scores else None

        bias = None if logits is None else soft_bias(logits, rows, self.grid, self.prune.rescale)
        middle = self.cfg.prune_after + 2
        x, taps = self._run(x, taps, dataclasses.replace(whole, key_bias=bias), self.cfg.prune_after + 1, middle)

        scores = self._scores(logits, scored, rows, rng)
        kept = select_cells(jax.lax.stop_gradient(scores), rows, as_fraction(self.prune.drops), capacity)
        taps = {layer: pack_cells(whole.unpack(tap), kept) for layer, tap in taps.items()}
        taps |= self._tail(whole.unpack(x), kept, whole, middle)
        return VitOutput(jnp.concatenate([taps[i] for i in self.cfg.feature_layers], axis=-1), kept, logits, scored)

    def _embed(self, patches: jax.Array) -> jax.Array:
        position = self.grid.to_cells(jnp.asarray(self.position_embedding))
        x = self.patch_embedding(patches.astype(self.dtype)) + position.astype(self.dtype)
        return self._fill(x)

    def _fill(self, x: jax.Array) -> jax.Array:
        filled = self.grid.filled
        return x if filled is None else jnp.where(filled[:, :, None], x, 0)

    def _scores(self, logits: jax.Array | None, scored: jax.Array, rows: FrameRows, rng: jax.Array | None) -> jax.Array:
        method = self.prune.method
        if logits is not None:
            return logits
        if method == "random":
            if rng is None:
                raise ValueError("pruning.method='random' needs a random key; pass rng= to the model.")
            return baselines.random_scores(rng, rows, self.grid.cells)
        if method == "easy":
            return baselines.easy_scores(scored)
        if method == "reference_tracking":
            return baselines.reference_tracking_scores(scored, rows, as_fraction(self.prune.drops))
        return jnp.zeros((*rows.item.shape, self.grid.cells), jnp.float32)

    def _tail(self, x: jax.Array, kept: Kept, whole: FrameLayout, start: int) -> dict[int, jax.Array]:
        if as_fraction(self.prune.drops) == 0:
            return self._tail_on(dataclasses.replace(whole, kept=kept), x, start)
        if self.prune.packing == "staircase":
            return self._tail_on(survivors(self.grid, kept, self.attention), x, start)
        rung, layouts = switch_bins(kept, self.prune.refill, self.grid.filled)
        if self.is_initializing():
            return self._tail_on(layouts[-1](), x, start)
        branches = [lambda vit, x, layout=layout: vit._tail_on(layout(), x, start) for layout in layouts]
        return nn.switch(rung, branches, self, x)

    def _tail_on(self, layout: Layout, x: jax.Array, start: int) -> dict[int, jax.Array]:
        _, taps = self._run(layout.pack(x), {}, layout, start, self.cfg.layers)
        return {layer: layout.stream(tap) for layer, tap in taps.items()}

    def _run(self, x: jax.Array, taps: dict, layout: Layout, start: int, stop: int) -> tuple[jax.Array, dict]:
        for first, end in cuts(self.cfg):
            if start <= first < stop and first <= max(self.cfg.feature_layers):
                x, _ = getattr(self, stack_name(first, end))(x, layout)
                if end - 1 in self.cfg.feature_layers:
                    taps = {**taps, end - 1: x}
        return x, taps
