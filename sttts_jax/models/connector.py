"""From the patches of a cell to one row of the language model (Molmo2): masked-mean query attention, then SwiGLU."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax.dims import EMBED, HEAD_DIM, HEADS, MLP, QKV
from sttts_jax.models.config import ConnectorConfig
from sttts_jax.ops.activation import swiglu
from sttts_jax.ops.attention.frames_xla import masked_softmax
from sttts_jax.ops.init import fan_in, zeros


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

    def _param(self, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        value = self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
        return value.astype(self.dtype)

    def _pool(self, windows: jax.Array, valid: jax.Array | None) -> jax.Array:
        c, channels = self.cfg, windows.shape[-1]
        q_kernel = self._param("q", fan_in(1), (channels, c.heads, c.head_dim), (EMBED, HEADS, HEAD_DIM))
        q_bias = self._param("q_bias", zeros, (c.heads, c.head_dim), (HEADS, HEAD_DIM))
        kv_kernel = self._param("kv", fan_in(1), (channels, 2, c.heads, c.head_dim), (EMBED, QKV, HEADS, HEAD_DIM))
        kv_bias = self._param("kv_bias", zeros, (2, c.heads, c.head_dim), (QKV, HEADS, HEAD_DIM))
        out_kernel = self._param("out", fan_in(2), (c.heads, c.head_dim, c.width), (HEADS, HEAD_DIM, EMBED))
        out_bias = self._param("out_bias", zeros, (c.width,), (EMBED,))

        total = jnp.sum(windows, axis=-2, dtype=jnp.float32)
        if valid is None:
            mean = total / windows.shape[-2]
        else:
            mean = total / jnp.maximum(jnp.sum(valid, axis=-1, keepdims=True), 1)
        q = jnp.einsum("...i,ihd->...hd", mean.astype(self.dtype), q_kernel) + q_bias
        kv = jnp.einsum("...wi,ithd->...wthd", windows, kv_kernel) + kv_bias
        k, v = kv[..., 0, :, :], kv[..., 1, :, :]
        logits = jnp.einsum("...hd,...whd->...hw", q, k, preferred_element_type=jnp.float32) * c.head_dim**-0.5
        weights = masked_softmax(logits, None if valid is None else valid[..., None, :])
        heads = jnp.einsum("...hw,...whd->...hd", weights.astype(self.dtype), v)
        return jnp.einsum("...hd,hdo->...o", heads, out_kernel) + out_bias

    def _project(self, pooled: jax.Array) -> jax.Array:
        c = self.cfg
        gate_up = self._param("gate_up", fan_in(1), (c.width, 2, c.mlp), (EMBED, QKV, MLP))
        down = self._param("down", fan_in(1), (c.mlp, self.out_width), (MLP, EMBED))
        both = jnp.einsum("...o,otm->...tm", pooled, gate_up)
        return jnp.einsum("...m,me->...e", swiglu(both[..., 0, :], both[..., 1, :]), down)
