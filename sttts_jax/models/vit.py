"""The vision transformer with the pruning inside it.

    blocks 0 .. p          all patches, plain                       (p = prune_after)
    scorer                 reads the output of block p
    block p + 1            all patches, scores as attention bias
    drop, pack             survivors only from here on
    blocks p + 2 ..        survivors, attention stays inside each frame

Blocks are stacked for scan in segments that are cut where something happens: before and after the biased block, and
after each feature layer. So the parameter tree depends on the architecture alone, not on the pruning method:
`blocks_00_03`, `blocks_04_04`, `blocks_05_18`, `blocks_19_24`. No slices of them are copied; stacks with nothing but a
feature layer between them run as one scan, for which they are put together in the dtype of the compute.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.models.config import VitConfig, cuts, stack_name
from sttts_jax.models.lora import Adapters, LoraConfig
from sttts_jax.models.vit_block import Block
from sttts_jax.ops.layers import Einsum, fan_in_gain, normal, weight
from sttts_jax.ops.remat import remat_policy
from sttts_jax.ops.token_moves import whole_rows
from sttts_jax.pruning import baselines
from sttts_jax.pruning.bias import soft_bias
from sttts_jax.pruning.bins import switch_bins
from sttts_jax.pruning.budget import as_fraction
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.layout import Attends, FlatFrames, Layout, Undropped, WholeFrames, survivors, whole_frames
from sttts_jax.pruning.scorer import Scorer
from sttts_jax.pruning.select import Kept, select_cells
from sttts_jax.sharding import constrain, room

SCORER_LEAVES = "vit/scorer/"  # what the names of a scorer's parameters begin with


class VitOutput(NamedTuple):
    """features [B, K, W, len(feature_layers) * D] of the survivors; kept; scorer logits float32 [B, F, C] or None;
    scored [B, F, C, W, D], what the scorer and the temporal loss read."""

    features: jax.Array
    kept: Kept
    logits: jax.Array | None
    scored: jax.Array


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
        self.prune.check()
        self.grid = c.cell_grid
        # A model that starts from nothing should see what and where from the first step. Pixels are small (about 0.3)
        # and alike within a patch: with a gain of 6 their embedding is of the size of the positions, about one.
        patch, position = (3 * c.patch**2, c.width), (self.grid.patches, c.width)
        patch_axes, position_axes = (dims.PATCH_IN, dims.EMBED), (dims.POSITION, dims.EMBED)
        self.patch_embedding = Einsum(patch, patch_axes, fan_in_gain(1, gain=6.0), dtype=self.dtype)
        self.position_embedding = weight(self, "position_embedding", normal(1.0), position, position_axes)
        for first, end in cuts(c):
            setattr(self, stack_name(first, end), self._stack(stack_name(first, end), end - first))
        if self.prune.has_scorer:
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

    def __call__(
        self,
        patches: jax.Array,
        rows: FrameRows,
        capacity: int,
        rng: jax.Array | None = None,
        scores: jax.Array | None = None,
    ) -> VitOutput:
        """patches [B, F, C, W, P] normalised, window-major; rows [B, F]; `capacity` K; `rng` only for "random".

        scores float32 [B, F, C], if given, rank the cells in the place of the method's; scorer and bias do their work.
        """
        capacity = room(capacity, dims.ACT_LENGTH)
        patches = constrain(patches, dims.ACT_BATCH, dims.ACT_LENGTH, *[None] * (patches.ndim - 2))
        whole = whole_frames(self.grid, patches.shape, self.attention)
        biased, after = self.cfg.prune_after + 1, self.cfg.head_layers
        x, taps = self.run_blocks(whole.pack(self._embed(patches)), whole, 0, biased)
        scored = self._fill(whole.unpack(x))  # [B, F, C, W, D]
        logits = self.scorer(scored, rows) if self.prune.has_scorer else None  # [B, F, C]

        bias = None if logits is None else soft_bias(logits, rows, self.grid, self.prune.rescale)  # [B, F, C]
        x, more = self.run_blocks(x, dataclasses.replace(whole, key_bias=bias), biased, after)

        ranking = self._rank(logits, scored, rows, rng) if scores is None else scores  # [B, F, C]
        ranking = whole_rows(jax.lax.stop_gradient(ranking))
        kept = select_cells(ranking, rows, as_fraction(self.prune.removed), capacity)
        kept = jax.tree.map(whole_rows, kept)
        undropped = Undropped(whole, kept)
        features = {layer: undropped.stream(tap) for layer, tap in (taps | more).items()}  # [B, K, W, D] each
        features |= self.run_survivors(whole.unpack(x), kept, whole)
        return VitOutput(jnp.concatenate([features[i] for i in self.cfg.feature_layers], axis=-1), kept, logits, scored)

    def run_blocks(
        self, x: jax.Array, layout: Attends, start: int, stop: int
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Blocks start .. stop - 1 on the tokens [tokens.., D] of a layout; none follow the last feature layer.

        Gives the tokens after them, and those after each feature layer among them, by layer. Raises ValueError for a
        start or stop inside of a stack.
        """
        inside = {start, stop} - {edge for cut in cuts(self.cfg) for edge in cut}
        if inside:
            raise ValueError(f"blocks {start} to {stop} cut a stack in two; the stacks are {cuts(self.cfg)}")
        taps: dict[int, jax.Array] = {}
        wanted = [cut for cut in cuts(self.cfg) if start <= cut[0] < stop and cut[0] <= max(self.cfg.feature_layers)]
        for run in self._alike(wanted):
            x, found = self._run_stack(x, layout, *run) if len(run) == 1 else self._run_alike(x, layout, run)
            taps |= found
        return x, taps

    def _alike(self, stacks: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The stacks in runs of neighbours whose blocks have the same parameters: LoRA may adapt some of them only."""
        if self.is_initializing():
            return [[stack] for stack in stacks]
        groups = itertools.groupby(stacks, lambda stack: jax.tree.structure(self._params(stack)))
        return [list(group) for _, group in groups]

    def _params(self, stack: tuple[int, int]) -> dict[str, Any]:
        return nn.unbox(self.variables["params"][stack_name(*stack)])

    def _run_stack(
        self, x: jax.Array, layout: Attends, stack: tuple[int, int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        x, _ = getattr(self, stack_name(*stack))(x, layout)
        last = stack[1] - 1
        return x, {last: x} if last in self.cfg.feature_layers else {}

    def _run_alike(
        self, x: jax.Array, layout: Attends, stacks: list[tuple[int, int]]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Several stacks by one scan, because compilers take each scan for a program of its own, gradients too.

        Its parameters are put together in the dtype of the compute; features on the way are carried to the end.
        """
        (start, _), (_, stop) = stacks[0], stacks[-1]
        params = jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(self._computed, map(self._params, stacks)))
        on_the_way = [layer for layer in range(start, stop - 1) if layer in self.cfg.feature_layers]
        block = Block(self.cfg, self.dtype, Adapters(self.lora, f"vit/{stack_name(*stacks[0])}"), parent=None)

        def apply(params: Any, x: jax.Array, layout: Attends) -> jax.Array:
            return block.apply({"params": params}, x, layout)[0]

        policy = remat_policy(self.remat)
        if policy is not None:
            apply = jax.checkpoint(apply, prevent_cse=False, policy=policy)

        def one(carry: tuple[jax.Array, list[jax.Array]], layer: tuple[jax.Array, Any]) -> tuple[Any, None]:
            x = apply(layer[1], carry[0], layout)
            return (x, [jnp.where(layer[0] == at, x, tap) for at, tap in zip(on_the_way, carry[1], strict=True)]), None

        begin = x, [jnp.zeros_like(x) for _ in on_the_way]
        (x, taps), _ = jax.lax.scan(one, begin, (jnp.arange(start, stop), params))
        found = dict(zip(on_the_way, taps, strict=True))
        return x, found | ({stop - 1: x} if stop - 1 in self.cfg.feature_layers else {})

    def _computed(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters of a stack as its blocks use them: norms in float32, the rest in the dtype of the compute."""
        cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(self.dtype))
        return {name: part if name.startswith("norm") else cast(part) for name, part in params.items()}

    def run_survivors(self, x: jax.Array, kept: Kept, whole: WholeFrames | FlatFrames) -> dict[int, jax.Array]:
        """Packing and the blocks after the drop: x [B, F, C, W, D] -> [B, K, W, D] after each feature layer, by layer.

        Where nothing is removed, the blocks run on `whole`.
        """
        if as_fraction(self.prune.removed) == 0:
            return self._run_on(Undropped(whole, kept), x)
        if self.prune.packing == "staircase":
            return self._run_on(survivors(self.grid, kept, self.attention), x)
        rung, layouts = switch_bins(kept, self.prune.refill, self.grid.filled)
        if self.is_initializing():
            return self._run_on(layouts[-1](), x)
        branches = [lambda vit, x, layout=layout: vit._run_on(layout(), x) for layout in layouts]
        return nn.switch(rung, branches, self, x)

    def _run_on(self, layout: Layout, x: jax.Array) -> dict[int, jax.Array]:
        _, taps = self.run_blocks(layout.pack(x), layout, self.cfg.head_layers, self.cfg.layers)
        return {layer: layout.stream(tap) for layer, tap in taps.items()}

    def _embed(self, patches: jax.Array) -> jax.Array:
        position = self.grid.to_cells(jnp.asarray(self.position_embedding))  # [C, W, D]
        # Flat, because TPUs pad the W patches of a cell, and their compiler takes a minute for such a product.
        flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])  # [B, F * C * W, P]
        x = self.patch_embedding("...p,pD->...D", flat).reshape(*patches.shape[:-1], -1)  # [B, F, C, W, D]
        return self._fill(x + position.astype(self.dtype))

    def _fill(self, x: jax.Array) -> jax.Array:
        """x [B, F, C, W, D] with zeros in empty slots."""
        filled = self.grid.filled
        return x if filled is None else jnp.where(filled[:, :, None], x, 0)

    def _rank(self, logits: jax.Array | None, scored: jax.Array, rows: FrameRows, rng: jax.Array | None) -> jax.Array:
        """float32 [B, F, C]: the scores of the method."""
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
            return baselines.reference_tracking_scores(scored, rows, as_fraction(self.prune.removed))
        return jnp.zeros((*rows.item.shape, self.grid.cells), jnp.float32)
