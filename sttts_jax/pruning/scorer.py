"""The scorer: cells of two neighbouring frames -> one logit a cell (STTS, arXiv 2603.18004, section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.pruning.frame_rows import FrameRows, previous

_pooler_init = nn.initializers.normal(0.02)
_mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")  # std sqrt(1 / fan_in)


def _dense(features, axis, init, names, dtype, name):
    sizes = features if isinstance(features, tuple) else (features,)
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), names[-len(sizes) :]),
        name=name,
    )


class CellPooler(nn.Module):
    """Attention pooling of a cell: query = mean of its W vectors, keys = values = the vectors; no norm, no residual."""

    heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, cells: jax.Array) -> jax.Array:
        """[..., C, W, D] -> [..., C, D]."""
        width, heads = cells.shape[-1], (self.heads, self.head_dim)
        names = (dims.EMBED, dims.HEADS, dims.HEAD_DIM)
        q = _dense(heads, -1, _pooler_init, names, self.dtype, "query")(cells.mean(axis=-2))
        k = _dense(heads, -1, _pooler_init, names, self.dtype, "key")(cells)
        v = _dense(heads, -1, _pooler_init, names, self.dtype, "value")(cells)
        logits = jnp.einsum("...chd,...cwhd->...chw", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        pooled = jnp.einsum("...chw,...cwhd->...chd", weights, v)
        return _dense(width, (-2, -1), _pooler_init, (dims.HEADS, dims.HEAD_DIM, dims.EMBED), self.dtype, "out")(pooled)


class Scorer(nn.Module):
    """Scores every cell from itself and the same cell one frame earlier.

    Selection ranks on the logits; the paper's score is their sigmoid.
    `across_items` keeps the behaviour of the authors' code, where the first frame of a packed row's second video sees
    the last frame of the video before it; by default every item starts afresh.
    """

    heads: int
    head_dim: int
    mlp: int
    across_items: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, cells: jax.Array, rows: FrameRows) -> jax.Array:
        """cells [..., F, C, W, D] (empty slots zero), rows [..., F] -> float32 logits [..., F, C]."""
        pooled = CellPooler(self.heads, self.head_dim, self.dtype, name="pooler")(cells.astype(self.dtype))
        pair = jnp.concatenate([previous(pooled, None if self.across_items else rows.first), pooled], axis=-1)
        x = nn.silu(_dense(self.mlp, -1, _mlp_init, (dims.EMBED, dims.SCORER_MLP), self.dtype, "fc1")(pair))
        x = nn.silu(_dense(self.mlp, -1, _mlp_init, (dims.EMBED, dims.SCORER_MLP), self.dtype, "fc2")(x))
        # The ranking is made on these numbers: float32, so that bf16 rounding does not make ties.
        return _dense(1, -1, _mlp_init, (dims.SCORER_MLP, None), jnp.float32, "fc3")(x.astype(jnp.float32))[..., 0]
