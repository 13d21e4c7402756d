"""One block of the SigLIP2 vision transformer: pre-norm attention inside frames, then a tanh-GELU MLP (Molmo2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.models.config import VitConfig
from sttts_jax.models.lora import Adapters
from sttts_jax.ops.activation import gelu_tanh
from sttts_jax.ops.norm import layer_norm
from sttts_jax.pruning.layout import Attends
from sttts_jax.sharding import constrain


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias, statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale = self.param("scale", nn.with_logical_partitioning(ones, (dims.EMBED,)), (x.shape[-1],))
        bias = self.param("bias", nn.with_logical_partitioning(zeros, (dims.EMBED,)), (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


def dense(
    features: int | tuple[int, ...],
    axis: int | tuple[int, ...],
    names: tuple[str, ...],
    outs: int,
    dtype: Any,
    name: str,
    gain: float = 1.0,
) -> nn.DenseGeneral:
    """A linear layer whose heads stay an axis of their own.

    `names` are the kernel's logical axes, the last `outs` of them the bias's; weights start with standard deviation
    gain / sqrt(fan-in).
    """
    return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(
            nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal"), names
        ),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), names[-outs:]),
        name=name,
    )


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), on whatever layout the tokens are in."""

    cfg: VitConfig
    dtype: jnp.dtype = jnp.float32
    adapters: Adapters = Adapters()

    @nn.compact
    def __call__(self, x: jax.Array, layout: Attends) -> tuple[jax.Array, None]:
        """x [tokens.., D] -> ([tokens.., D], None); the None is scan's per-layer output."""
        c = self.cfg
        y = LayerNorm(c.norm_eps, name="norm1")(x)  # [tokens.., D]
        names = (dims.EMBED, dims.QKV, dims.HEADS, dims.HEAD_DIM)
        qkv = self._project(y, "qkv", (3, c.heads, c.head_dim), names)  # [tokens.., 3, H, d]
        y = layout.attend(_by_batch(qkv, dims.ACT_HEADS, dims.ACT_HEAD_DIM))  # [tokens.., H, d]
        x = x + self._project(y, "out", (c.width,), (dims.HEADS, dims.HEAD_DIM, dims.EMBED), inputs=2)
        y = LayerNorm(c.norm_eps, name="norm2")(x)
        y = gelu_tanh(self._project(y, "fc1", (c.mlp,), (dims.EMBED, dims.MLP)))  # [tokens.., M]
        y = self._project(_by_batch(y, dims.ACT_MLP), "fc2", (c.width,), (dims.MLP, dims.EMBED))
        return _by_batch(x + y, dims.ACT_EMBED), None

    def _project(
        self, x: jax.Array, name: str, features: tuple[int, ...], names: tuple[str, ...], inputs: int = 1
    ) -> jax.Array:
        y = dense(features, tuple(range(-inputs, 0)), names, len(features), self.dtype, name)(x)
        return self.adapters.add(self, name, y, x, names, inputs)


def _by_batch(x: jax.Array, *last: str) -> jax.Array:
    """Rows over the batch axes of the mesh, the last axes as named."""
    return constrain(x, dims.ACT_BATCH, *[None] * (x.ndim - 1 - len(last)), *last)
