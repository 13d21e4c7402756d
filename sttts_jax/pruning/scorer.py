"""The scorer: cells of two neighbouring frames -> one logit a cell (STTS, arXiv 2603.18004, section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.ops.layers import Einsum, fan_in_gain, normal
from sttts_jax.pruning.frame_rows import CELL_AXES, FrameRows, previous

HISTOGRAM_BINS = 20  # of scores, from 0 to 1
_pooler_init = normal(0.02)
_mlp_init = fan_in_gain(1)


class CellPooler(nn.Module):
    """Attention pooling of a cell: query = mean of its W vectors, keys = values = the vectors; no norm, no residual."""

    heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.float32
    partitioned: bool = True

    @nn.compact
    def __call__(self, cells: jax.Array) -> jax.Array:
        """[..., C, W, D] -> [..., C, D]."""
        width, heads, axes = cells.shape[-1], (self.heads, self.head_dim), (dims.HEADS, dims.HEAD_DIM)

        def linear(name: str, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int) -> Einsum:
            named = axes if self.partitioned else None
            return Einsum(shape, named, _pooler_init, inputs, self.dtype, name=name)

        inner = (width, *heads), (dims.EMBED, *axes), 1
        q = linear("query", *inner)("...D,DHd->...Hd", cells.mean(axis=-2))  # [..., C, H, d]
        k = linear("key", *inner)("...D,DHd->...Hd", cells)  # [..., C, W, H, d]
        v = linear("value", *inner)("...D,DHd->...Hd", cells)  # [..., C, W, H, d]
        logits = jnp.einsum("...chd,...cwhd->...chw", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # [..., C, H, W]
        pooled = jnp.einsum("...chw,...cwhd->...chd", weights, v)  # [..., C, H, d]
        return linear("out", (*heads, width), (*axes, dims.EMBED), 2)("...Hd,HdD->...D", pooled)


class Scorer(nn.Module):
    """Scores every cell from itself and the same cell one frame earlier.

    Selection ranks on the logits; the paper's score is their sigmoid.

    heads, head_dim   of the pooler: those of the ViT
    mlp               M, width of the two hidden layers: the ViT's
    across_items      keep the behaviour of the authors' code, where the first frame of a packed row's second video sees
                      the last frame of the video before it; by default every item starts afresh
    dtype             of the matrix products; the last layer is always float32
    partitioned       parameters carry the logical axis names of `sttts_jax.dims` in boxes of `flax.linen`, which
                      sharding by rules needs; False makes plain arrays, for `flax.nnx.bridge`, which takes the names
                      for axes of the mesh
    """

    heads: int
    head_dim: int
    mlp: int
    across_items: bool = False
    dtype: jnp.dtype = jnp.float32
    partitioned: bool = True

    @nn.compact
    def __call__(self, cells: jax.Array, rows: FrameRows) -> jax.Array:
        """cells [..., F, C, W, D] (empty slots zero), rows [..., F] -> float32 logits [..., F, C].

        Raises ValueError when the two do not fit, such as for patches that were never put into cells.
        """
        rows.check_shape("cells", cells.shape, CELL_AXES)

        def linear(name: str, shape: tuple[int, int], axes: tuple[str | None, ...], dtype: jnp.dtype) -> Einsum:
            named = axes if self.partitioned else None
            return Einsum(shape, named, _mlp_init, dtype=dtype, name=name)

        pooler = CellPooler(self.heads, self.head_dim, self.dtype, self.partitioned, name="pooler")
        pooled = pooler(cells.astype(self.dtype))  # [..., F, C, D]
        before = previous(pooled, None if self.across_items else rows.first)  # [..., F, C, D]
        pair = jnp.concatenate([before, pooled], axis=-1)  # [..., F, C, 2 D]
        hidden = (dims.EMBED, dims.SCORER_MLP)
        fc1 = linear("fc1", (pair.shape[-1], self.mlp), hidden, self.dtype)
        fc2 = linear("fc2", (self.mlp, self.mlp), hidden, self.dtype)
        # The ranking is made on these numbers: float32, so that bf16 rounding does not make ties.
        fc3 = linear("fc3", (self.mlp, 1), (dims.SCORER_MLP, None), jnp.float32)
        x = nn.silu(fc1("...i,iM->...M", pair))  # [..., F, C, M]
        x = nn.silu(fc2("...i,iM->...M", x))  # [..., F, C, M]
        return fc3("...M,Mo->...o", x)[..., 0]  # [..., F, C]
