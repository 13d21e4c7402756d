"""The scorer: cells of two neighbouring frames -> one logit a cell (STTS, arXiv 2603.18004, section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.pruning.frame_rows import CELL_AXES, FrameRows, previous

_pooler_init = nn.initializers.normal(0.02)
_mlp_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")  # std sqrt(1 / fan_in)


def _dense(features, axis, init, names, dtype, name, partitioned):
    """A projection whose weights carry logical axis names if `partitioned`, and are plain arrays otherwise."""
    sizes = features if isinstance(features, tuple) else (features,)
    named = nn.with_logical_partitioning if partitioned else lambda init, _: init
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=dtype,
        kernel_init=named(init, names),
        bias_init=named(nn.initializers.zeros_init(), names[-len(sizes) :]),
        name=name,
    )


class CellPooler(nn.Module):
    """Attention pooling of a cell: query = mean of its W vectors, keys = values = the vectors; no norm, no residual."""

    heads: int
    head_dim: int
    dtype: jnp.dtype = jnp.float32
    partitioned: bool = True

    @nn.compact
    def __call__(self, cells: jax.Array) -> jax.Array:
        """[..., C, W, D] -> [..., C, D]."""

        def dense(features, axis, names, name):
            return _dense(features, axis, _pooler_init, names, self.dtype, name, self.partitioned)

        width, heads = cells.shape[-1], (self.heads, self.head_dim)
        names = (dims.EMBED, dims.HEADS, dims.HEAD_DIM)
        q = dense(heads, -1, names, "query")(cells.mean(axis=-2))  # [..., C, H, d]
        k = dense(heads, -1, names, "key")(cells)  # [..., C, W, H, d]
        v = dense(heads, -1, names, "value")(cells)  # [..., C, W, H, d]
        logits = jnp.einsum("...chd,...cwhd->...chw", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # [..., C, H, W]
        pooled = jnp.einsum("...chw,...cwhd->...chd", weights, v)  # [..., C, H, d]
        return dense(width, (-2, -1), (dims.HEADS, dims.HEAD_DIM, dims.EMBED), "out")(pooled)


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
        rows.check("cells", cells.shape, CELL_AXES)

        def dense(features, names, name, dtype=self.dtype):
            return _dense(features, -1, _mlp_init, names, dtype, name, self.partitioned)

        pooler = CellPooler(self.heads, self.head_dim, self.dtype, self.partitioned, name="pooler")
        pooled = pooler(cells.astype(self.dtype))  # [..., F, C, D]
        before = previous(pooled, None if self.across_items else rows.first)  # [..., F, C, D]
        pair = jnp.concatenate([before, pooled], axis=-1)  # [..., F, C, 2 D]
        x = nn.silu(dense(self.mlp, (dims.EMBED, dims.SCORER_MLP), "fc1")(pair))  # [..., F, C, M]
        x = nn.silu(dense(self.mlp, (dims.EMBED, dims.SCORER_MLP), "fc2")(x))  # [..., F, C, M]
        # The ranking is made on these numbers: float32, so that bf16 rounding does not make ties.
        return dense(1, (dims.SCORER_MLP, None), "fc3", jnp.float32)(x.astype(jnp.float32))[..., 0]  # [..., F, C]
