"""One block of the SigLIP2 vision transformer: pre-norm attention inside frames, then a tanh-GELU MLP (Molmo2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.models.config import VitConfig
from sttts_jax.models.lora import Adapters
from sttts_jax.ops.activation import gelu_tanh
from sttts_jax.ops.layers import Einsum, fan_in_gain, ones, weight, zeros
from sttts_jax.ops.norm import layer_norm
from sttts_jax.pruning.layout import Attends
from sttts_jax.sharding import constrain


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias, statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = weight(self, "scale", ones, x.shape[-1:], (dims.EMBED,))
        bias = weight(self, "bias", zeros, x.shape[-1:], (dims.EMBED,))
        return layer_norm(x, scale, bias, self.eps)


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
        heads, axes = (c.heads, c.head_dim), (dims.HEADS, dims.HEAD_DIM)
        qkv = self._project("...D,DtHd->...tHd", y, "qkv", (c.width, 3, *heads), (dims.EMBED, dims.QKV, *axes))
        y = layout.attend(_by_token(qkv, dims.ACT_HEADS, dims.ACT_HEAD_DIM))  # [tokens.., H, d]
        x = x + self._project("...Hd,HdD->...D", y, "out", (*heads, c.width), (*axes, dims.EMBED), inputs=2)
        y = LayerNorm(c.norm_eps, name="norm2")(x)
        y = gelu_tanh(self._project("...D,DM->...M", y, "fc1", (c.width, c.mlp), (dims.EMBED, dims.MLP)))
        y = _by_token(y, dims.ACT_MLP)
        y = self._project("...M,MD->...D", y, "fc2", (c.mlp, c.width), (dims.MLP, dims.EMBED))
        return _by_token(x + y, dims.ACT_EMBED), None

    def _project(
        self, equation: str, x: jax.Array, name: str, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int = 1
    ) -> jax.Array:
        y = Einsum(shape, axes, fan_in_gain(inputs), inputs, self.dtype, name=name)(equation, x)
        return self.adapters.add(self, name, y, x, axes, inputs)


def _by_token(x: jax.Array, *last: str) -> jax.Array:
    """Rows and tokens over their axes of the mesh, the last axes as named."""
    return constrain(x, dims.ACT_BATCH, dims.ACT_LENGTH, *[None] * (x.ndim - 2 - len(last)), *last)
