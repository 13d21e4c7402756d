"""The video vision-language model: ViT with pruning inside, connector on survivors, language model on pruned rows."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.models.cache import KvCache
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.connector import Connector
from sttts_jax.models.llm import Llm
from sttts_jax.models.pruned_rows import PrunedRows, prune_rows
from sttts_jax.models.vit import Vit, VitOutput
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.loss import LossSums, head_loss
from sttts_jax.ops.token_moves import whole_rows
from sttts_jax.pruning.aux_loss import temporal_loss
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.pack import take_tokens
from sttts_jax.sharding import constrain, room

Batch = dict[str, jax.Array]


def frame_rows(batch: Batch) -> FrameRows:
    """Which frame of a batch belongs to which item: [B, F]."""
    return FrameRows(whole_rows(batch["frame_item"]), whole_rows(batch["frame_prunable"]))


class VlmLoss(NamedTuple):
    """Sums of one batch, float32 scalars, so that means are taken over the global batch; and what the logs show.

    task          sums of the token loss
    aux, aux_count    squared errors of the temporal loss, and how many
    kept          bool [B, F, C]
    scores        float32 [B, F, C] in (0, 1), or None without a scorer
    """

    task: LossSums
    aux: jax.Array
    aux_count: jax.Array
    kept: jax.Array
    scores: jax.Array | None


class Prefix(NamedTuple):
    """What the language model starts from: embedded rows x [B, S, E], their tokens, and what the ViT said."""

    x: jax.Array
    rows: PrunedRows
    vit: VitOutput


def pixels_to_patches(frames: jax.Array, grid: CellGrid, patch: int) -> jax.Array:
    """uint8 [..., H, W, 3] -> float32 [..., C, W, patch * patch * 3] in [-1, 1].

    Window-major; (row, column, channel) inside a patch.
    """
    (rows, cols), lead = grid.grid, frames.shape[:-3]
    x = frames.reshape(*lead, rows, patch, cols, patch, 3)
    x = jnp.moveaxis(x, -4, -3).reshape(*lead, rows * cols, patch * patch * 3)  # [..., N, P]
    return grid.to_cells(x).astype(jnp.float32) / 127.5 - 1.0


class Vlm(nn.Module):
    """`capacity` K and `length` S are the static sizes of a bucket: cells kept in a row, tokens of a row."""

    cfg: VlmConfig
    prune: PruneConfig
    capacity: int
    length: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "xla"

    def setup(self) -> None:
        c = self.cfg
        self.grid = c.vit.cell_grid
        self.vit = Vit(c.vit, self.prune, self.dtype, self.remat, self.attention, c.lora)
        self.connector = Connector(c.connector, c.llm.width, self.dtype)
        self.llm = Llm(c.llm, self.dtype, self.remat, self.attention, lora=c.lora)

    def __call__(
        self, batch: Batch, rng: jax.Array | None = None, deterministic: bool = True
    ) -> tuple[jax.Array, Prefix]:
        """batch of the data contract -> (hidden [B, S, E] after the final norm, prefix). `rng`: for "random"."""
        prefix = self.prefix(batch, rng, room(self.length, dims.ACT_LENGTH))
        hidden, _ = self.llm(prefix.x, prefix.rows.positions, prefix.rows.rule, deterministic=deterministic)
        return hidden, prefix

    def prefix(self, batch: Batch, rng: jax.Array | None = None, length: int | None = None) -> Prefix:
        """Frames -> survivors -> rows of the language model, visual features added to their <im_patch> embeddings.

        A batch may hold `patches` [B, F, C, W, P] in the place of frames, and `scores` float32 [B, F, C] that rank the
        cells in the place of the method's own. `length`: of the rows, where they shall be longer than S.
        """
        patches = batch["patches"] if "patches" in batch else self._patches(batch["frames"])  # [B, F, C, W, P]
        seen = self.vit(patches, frame_rows(batch), self.capacity, rng, batch.get("scores"))
        visual = self.connector(seen.features, self._filled(seen))  # [B, K, E]
        extra = 0
        if "pooling" in batch:
            pooled = self._pool_images(seen, batch["pooling"])  # [B, P, E]
            visual, extra = jnp.concatenate([visual, pooled], axis=1), pooled.shape[1]  # [B, X, E]
        rows = prune_rows(batch, seen.kept, length or self.length, self.prune.positions, extra)
        rows = jax.tree.map(whole_rows, rows)
        x = self.llm.embed(rows.tokens) + take_tokens(visual, rows.visual, rows.inverse)  # [B, S, E]
        return Prefix(constrain(x, dims.ACT_BATCH, dims.ACT_LENGTH, dims.ACT_EMBED), rows, seen)

    def _patches(self, frames: jax.Array) -> jax.Array:
        return pixels_to_patches(frames, self.grid, self.cfg.vit.patch)

    def _filled(self, seen: VitOutput) -> jax.Array | None:
        """bool [B, K, W]: the patches of the survivors that exist; None for all."""
        if self.grid.filled is None:
            return None
        return jnp.asarray(self.grid.filled)[seen.kept.ids % self.grid.cells]

    def _pool_images(self, seen: VitOutput, pooling: jax.Array) -> jax.Array:
        """pooling int32 [B, P, w]: patch f * N + n of each slot of a window, -1 for none -> [B, P, E]."""
        place = jnp.asarray(self.grid.places)  # [N]
        frame, patch = pooling // self.grid.patches, pooling % self.grid.patches  # [B, P, w]
        # [B, P, w] each: cells of the row, patches of the cell, and where the cell stands among the K kept ones.
        cell, slot = frame * self.grid.cells + place[patch] // self.grid.window, place[patch] % self.grid.window
        stream = jax.vmap(lambda inverse, cell: jnp.take(inverse, cell, mode="clip"))(seen.kept.inverse, cell)
        valid = (pooling >= 0) & (stream < self.capacity)  # [B, P, w]
        flat = seen.features.reshape(seen.features.shape[0], -1, seen.features.shape[-1])  # [B, K*W, taps*D]
        index = jnp.where(valid, stream * self.grid.window + slot, flat.shape[1])  # [B, P, w]
        # [B, P, w, taps*D]
        windows = jax.vmap(lambda x, i: jnp.take(x, i, axis=0, mode="fill", fill_value=0))(flat, index)
        return self.connector(windows, valid)

    def loss(self, batch: Batch, rng: jax.Array | None = None, deterministic: bool = True) -> VlmLoss:
        """Sums of the token loss and of the temporal loss; the caller adds micro-batches and divides once."""
        hidden, prefix = self(batch, rng, deterministic)
        task = head_loss(hidden, self.llm.head_matrix(), prefix.rows.targets, prefix.rows.weights)
        aux, count, scores = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), None
        if prefix.vit.logits is not None:
            aux, count = temporal_loss(
                prefix.vit.logits,
                prefix.vit.scored,
                frame_rows(batch),
                across_items=self.prune.across_items,
                stop_gradient=self.prune.aux_stop_gradient,
            )
            scores = jax.nn.sigmoid(prefix.vit.logits)
        return VlmLoss(task, aux, count, prefix.vit.kept.mask, scores)

    def prefill(
        self, batch: Batch, cache_length: int, rng: jax.Array | None = None
    ) -> tuple[jax.Array, KvCache, jax.Array, VitOutput]:
        """One prompt a row -> (logits [B, Y] after the last token, cache, next position [B], ViT output).

        The cache has `cache_length` slots: S and the new tokens.
        """
        hidden, cache, position, seen = self._start(batch, cache_length, rng)
        return self.llm.logits(hidden), cache, position, seen

    def prefill_prefix(
        self, batch: Batch, cache_length: int, rng: jax.Array | None = None
    ) -> tuple[KvCache, jax.Array, VitOutput]:
        """What the questions on a video share, one video a row -> (cache, next position [B], ViT output).

        The prefix holds every vision token and ends with a token that is no cell. The cache has `cache_length` slots:
        S, and the tokens of all questions and answers.
        """
        return self._start(batch, cache_length, rng)[1:]

    def extend(
        self, tokens: jax.Array, lengths: jax.Array, position: jax.Array, cache: KvCache
    ) -> tuple[jax.Array, KvCache, jax.Array]:
        """Q questions a row, side by side, after its prefix -> (logits [B, Q, Y], cache, next positions [B, Q]).

        tokens int32 [B, Q, T], padded on the right; lengths int32 [B, Q], 0 for no question; position int32 [B]. The
        prefix is there once, and each question sees it and itself only: as good as Q prompts.
        """
        rows, _, longest = tokens.shape
        valid = jnp.arange(longest) < lengths[..., None]  # [B, Q, T]
        positions = jnp.broadcast_to(position[:, None, None] + jnp.arange(longest), tokens.shape)  # [B, Q, T]
        x = self.llm.embed(tokens.reshape(rows, -1))  # [B, Q*T, E]
        hidden, cache = self._cached(x, positions.reshape(rows, -1), cache.branch_rule(valid), cache)
        last = jnp.maximum(lengths - 1, 0)[..., None, None]  # [B, Q, 1, 1]
        hidden = jnp.take_along_axis(hidden.reshape(*tokens.shape, -1), last, axis=2)[:, :, 0]  # [B, Q, E]
        return self.llm.logits(hidden), cache, position[:, None] + lengths

    def decode(self, token: jax.Array, position: jax.Array, cache: KvCache) -> tuple[jax.Array, KvCache]:
        """token and position int32 [B], or [B, Q] after `extend` -> (logits [B, Y] or [B, Q, Y], cache).

        One more slot of the cache is used by every token of a row.
        """
        tokens, positions = (x.reshape(x.shape[0], -1) for x in (token, position))  # [B, 1] or [B, Q]
        rule = cache.branch_rule(jnp.ones((*tokens.shape, 1), bool))
        hidden, cache = self._cached(self.llm.embed(tokens), positions, rule, cache)
        return self.llm.logits(hidden).reshape(*token.shape, -1), cache

    def _start(
        self, batch: Batch, cache_length: int, rng: jax.Array | None
    ) -> tuple[jax.Array, KvCache, jax.Array, VitOutput]:
        """(hidden [B, E] of the last token, cache, next position [B], ViT output)."""
        prefix = self.prefix(batch, rng)
        rows = prefix.rows
        cache = KvCache.empty(self.cfg.llm, rows.tokens.shape[0], cache_length, self.dtype)
        hidden, cache = self._cached(prefix.x, rows.positions, rows.rule, cache)
        last = jnp.maximum(jnp.sum(rows.rule.example >= 0, axis=1) - 1, 0)  # [B]
        pick = jax.vmap(lambda x, i: x[i])
        return pick(hidden, last), cache, pick(rows.positions, last) + 1, prefix.vit

    def _cached(self, x: jax.Array, positions: jax.Array, rule: RowRule, cache: KvCache) -> tuple[jax.Array, KvCache]:
        hidden, filled = self.llm(x, positions, rule, cache=cache)
        assert filled is not None
        return hidden, filled
