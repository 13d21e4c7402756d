"""From the patches of a cell to one row of the language model (Molmo2): masked-mean query attention, then SwiGLU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax.dims import EMBED, GATE_UP, HEAD_DIM, HEADS, MLP, QKV
from sttts_jax.models.config import ConnectorConfig
from sttts_jax.ops.activation import swiglu
from sttts_jax.ops.attention.frames_xla import masked_softmax
from sttts_jax.ops.layers import fan_in, weight, zeros


class Connector(nn.Module):
    """Pools each window of patch features into one vector of `out_width`.

    Parameters (i = input channels): q [i, H, d], q_bias [H, d], kv [i, 2, H, d], kv_bias [2, H, d], out [H, d, D],
    out_bias [D], gate_up [D, 2, M], down [M, E].
    """

    cfg: ConnectorConfig
    out_width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, windows: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """windows [..., W, i], valid bool [..., W] (None: all) -> [..., E] in `dtype`.

        The query is the mean of the valid raw features; invalid patches are neither averaged nor attended to. A
        window without a valid patch gives a finite constant (the caller drops it) and no gradient to its features.
        """
        if valid is not None:
            windows = jnp.where(valid[..., None], windows, 0)
        pooled = self._pool(windows.astype(self.dtype), valid)
        return self._project(pooled)

    def _pool(self, windows: jax.Array, valid: jax.Array | None) -> jax.Array:
        c, channels = self.cfg, windows.shape[-1]
        q_kernel = weight(self, "q", fan_in(1), (channels, c.heads, c.head_dim), (EMBED, HEADS, HEAD_DIM), self.dtype)
        q_bias = weight(self, "q_bias", zeros, (c.heads, c.head_dim), (HEADS, HEAD_DIM), self.dtype)
        kv_kernel = weight(
            self, "kv", fan_in(1), (channels, 2, c.heads, c.head_dim), (EMBED, QKV, HEADS, HEAD_DIM), self.dtype
        )
        kv_bias = weight(self, "kv_bias", zeros, (2, c.heads, c.head_dim), (QKV, HEADS, HEAD_DIM), self.dtype)
        out_kernel = weight(
            self, "out", fan_in(2), (c.heads, c.head_dim, c.width), (HEADS, HEAD_DIM, EMBED), self.dtype
        )
        out_bias = weight(self, "out_bias", zeros, (c.width,), (EMBED,), self.dtype)

        total = jnp.sum(windows, axis=-2, dtype=jnp.float32)  # [..., i]
        if valid is None:
            mean = total / windows.shape[-2]  # [..., i]
        else:
            mean = total / jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)  # [..., i]
        q = jnp.einsum("...i,ihd->...hd", mean.astype(self.dtype), q_kernel) + q_bias  # [..., H, d]
        kv = jnp.einsum("...wi,ithd->...wthd", windows, kv_kernel) + kv_bias  # [..., W, 2, H, d]
        k, v = kv[..., 0, :, :], kv[..., 1, :, :]  # [..., W, H, d]
        logits = jnp.einsum("...hd,...whd->...hw", q, k, preferred_element_type=jnp.float32)  # [..., H, W]
        seen = None if valid is None else valid[..., None, :]  # [..., 1, W]
        weights = masked_softmax(logits * c.head_dim**-0.5, seen)  # [..., H, W]
        heads = jnp.einsum("...hw,...whd->...hd", weights.astype(self.dtype), v)  # [..., H, d]
        return jnp.einsum("...hd,hdo->...o", heads, out_kernel) + out_bias  # [..., D]

    def _project(self, pooled: jax.Array) -> jax.Array:
        c = self.cfg
        gate_up = weight(self, "gate_up", fan_in(1), (c.width, 2, c.mlp), (EMBED, GATE_UP, MLP), self.dtype)
        down = weight(self, "down", fan_in(1), (c.mlp, self.out_width), (MLP, EMBED), self.dtype)
        both = jnp.einsum("...o,otm->...tm", pooled, gate_up)  # [..., 2, M]
        return jnp.einsum("...m,me->...e", swiglu(both[..., 0, :], both[..., 1, :]), down)
