"""The language model: Qwen3-style (pre-norm) and Olmo3-style (post-norm) decoders over packed rows.

Blocks are stacked on a leading `layers` axis and run by `nn.scan`. Nothing here knows about images: the caller gives
embedded rows, their positions and the rule of who sees whom.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax import dims
from sttts_jax.dims import ACT_BATCH, ACT_EMBED, ACT_HEAD_DIM, ACT_HEADS, ACT_KV_HEADS, ACT_LENGTH, ACT_MLP
from sttts_jax.models.cache import KvCache, write_layer
from sttts_jax.models.config import LlmConfig
from sttts_jax.models.lora import Adapters, LoraConfig
from sttts_jax.ops.activation import swiglu
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.attention.rows import RowsPlan, attend_rows, plan_rows
from sttts_jax.ops.layers import fan_in, normal, ones, weight
from sttts_jax.ops.norm import rms_norm
from sttts_jax.ops.remat import remat_policy
from sttts_jax.ops.rope import apply_rope, rope_frequencies, rope_tables, yarn_frequencies
from sttts_jax.ops.token_moves import channels_to_tokens, heads_to_tokens, tokens_to_heads
from sttts_jax.sharding import constrain

Rope = tuple[jax.Array, jax.Array]  # cos and sin, [R, B, S, d/2]; R = 2 (plain, YaRN) if some layers are scaled
Kv = tuple[jax.Array, jax.Array]  # the two buffers of a KvCache


class LlmBlock(nn.Module):
    """Attention and SwiGLU with residuals; norms before (`norm="pre"`) or after ("post") each of the two."""

    cfg: LlmConfig
    dtype: Any
    adapters: Adapters = Adapters()

    def _norm(self, x: jax.Array, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        return rms_norm(x, weight(self, name, ones, shape, axes, self.dtype), self.cfg.norm_eps)

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, Kv | None],
        layer: tuple[jax.Array, jax.Array],
        rope: Rope,
        plan: RowsPlan,
        length: jax.Array,
        deterministic: bool,
    ) -> tuple[tuple[jax.Array, Kv | None], None]:
        """carry = (x [B, S, E], cache buffers); layer = (index, which rope table); plan of the attention."""
        x, kv = carry
        pre = self.cfg.norm == "pre"
        width = ((self.cfg.width,), (dims.EMBED,))
        out = self._norm(x, "attn_norm", *width) if pre else x
        out, kv = self._attention(out, kv, layer, rope, plan, length)
        out = out if pre else self._norm(out, "attn_norm", *width)
        x = constrain(x + self._drop(out, deterministic), ACT_BATCH, ACT_LENGTH, ACT_EMBED)
        out = self._norm(x, "mlp_norm", *width) if pre else x
        out = self._mlp(out)
        out = out if pre else self._norm(out, "mlp_norm", *width)
        x = constrain(x + self._drop(out, deterministic), ACT_BATCH, ACT_LENGTH, ACT_EMBED)
        return (x, kv), None

    def _drop(self, x: jax.Array, deterministic: bool) -> jax.Array:
        return nn.Dropout(self.cfg.dropout)(x, deterministic=deterministic)

    def _attention(
        self,
        x: jax.Array,
        kv: Kv | None,
        layer: tuple[jax.Array, jax.Array],
        rope: Rope,
        plan: RowsPlan,
        length: jax.Array,
    ) -> tuple[jax.Array, Kv | None]:
        c = self.cfg
        q_axes, kv_axes = (dims.HEADS, dims.HEAD_DIM), (dims.KV_HEADS, dims.HEAD_DIM)
        # Before norms and factors: what a seed gives a weight depends on how many the module made before it.
        q_kernel = weight(self, "q", fan_in(1), (c.width, c.heads, c.head_dim), (dims.EMBED, *q_axes), self.dtype)
        kv_shape = (c.width, 2, c.kv_heads, c.head_dim)
        kv_kernel = weight(self, "kv", fan_in(1), kv_shape, (dims.EMBED, dims.QKV, *kv_axes), self.dtype)
        out_kernel = weight(self, "out", fan_in(2), (c.heads, c.head_dim, c.width), (*q_axes, dims.EMBED), self.dtype)
        q = jnp.einsum("bse,ehd->bshd", x, q_kernel)  # [B, S, H, d]
        q = self.adapters.add(self, "q", q, x, (dims.EMBED, *q_axes))
        both = jnp.einsum("bse,ethd->bsthd", x, kv_kernel)  # [B, S, 2, Hkv, d]
        both = self.adapters.add(self, "kv", both, x, (dims.EMBED, dims.QKV, *kv_axes))
        k, v = both[:, :, 0], both[:, :, 1]
        if c.qk_norm == "head":
            q = self._norm(q, "q_norm", (c.head_dim,), (dims.HEAD_DIM,))
            k = self._norm(k, "k_norm", (c.head_dim,), (dims.HEAD_DIM,))
        else:
            q = self._norm(q, "q_norm", (c.heads, c.head_dim), q_axes)
            k = self._norm(k, "k_norm", (c.kv_heads, c.head_dim), kv_axes)
        index, table = layer
        cos, sin = (x[0] if x.shape[0] == 1 else x[table] for x in rope)  # [B, S, d/2]
        q = constrain(apply_rope(q, cos, sin), ACT_BATCH, ACT_LENGTH, ACT_HEADS, ACT_HEAD_DIM)
        k = constrain(apply_rope(k, cos, sin), ACT_BATCH, ACT_LENGTH, ACT_KV_HEADS, ACT_HEAD_DIM)
        v = constrain(v, ACT_BATCH, ACT_LENGTH, ACT_KV_HEADS, ACT_HEAD_DIM)
        q, k, v = (tokens_to_heads(x) for x in (q, k, v))
        if kv is not None:
            k_buffer, k = write_layer(kv[0], index, length, k)  # from here on all Smax slots of the layer
            v_buffer, v = write_layer(kv[1], index, length, v)
            kv = (k_buffer, v_buffer)
        heads = heads_to_tokens(attend_rows(q, k, v, plan))  # [B, S, H, d]
        out = jnp.einsum("bshd,hde->bse", heads, out_kernel)
        return self.adapters.add(self, "out", out, heads, (*q_axes, dims.EMBED), inputs=2), kv

    def _mlp(self, x: jax.Array) -> jax.Array:
        c = self.cfg
        gate_up = weight(
            self, "gate_up", fan_in(1), (c.width, 2, c.mlp), (dims.EMBED, dims.GATE_UP, dims.MLP), self.dtype
        )
        down = weight(self, "down", fan_in(1), (c.mlp, c.width), (dims.MLP, dims.EMBED), self.dtype)
        both = jnp.einsum("bse,etm->bstm", x, gate_up)  # [B, S, 2, M]
        both = self.adapters.add(self, "gate_up", both, x, (dims.EMBED, dims.GATE_UP, dims.MLP))
        hidden = swiglu(both[:, :, 0], both[:, :, 1])  # [B, S, M]
        hidden = constrain(hidden, ACT_BATCH, ACT_LENGTH, ACT_MLP)
        out = jnp.einsum("bsm,me->bse", hidden, down)
        return self.adapters.add(self, "down", out, hidden, (dims.MLP, dims.EMBED))


class Llm(nn.Module):
    """Decoder over embedded rows.

    Parameters: embedding [Y, E], new_embedding [extra, E], final_norm [E], head [Y, E] (only if not tied), and in
    `blocks`, each with a leading L: q [E, H, d], kv [E, 2, Hkv, d], out [H, d, E], q_norm and k_norm ([d], or [H, d]
    and [Hkv, d] for qk_norm "full"), gate_up [E, 2, M], down [M, E], attn_norm and mlp_norm [E]; and what `lora` adds.

    `dtype` is the compute dtype, `remat` a name of `ops.remat`, `attention` and `query_block` go to `plan_rows`.
    """

    cfg: LlmConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    query_block: int = 512
    lora: LoraConfig | None = None

    def setup(self) -> None:
        c = self.cfg.check()

        def table(name: str, rows: int) -> jax.Array:
            return weight(self, name, normal(c.width**-0.5), (rows, c.width), (dims.VOCAB, dims.EMBED))

        self.embedding = table("embedding", c.vocab)
        if c.extra_vocab:
            self.new_embedding = table("new_embedding", c.extra_vocab)
        self.final_norm = weight(self, "final_norm", ones, (c.width,), (dims.EMBED,))
        if not c.tied:
            self.head = table("head", c.vocab)
        block, policy = LlmBlock, remat_policy(self.remat)
        if policy is not None:
            block = nn.remat(block, policy=policy, prevent_cse=False, static_argnums=(6,))
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: dims.LAYERS},
        )(c, self.dtype, Adapters(self.lora, "llm/blocks"))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [B, S] -> `dtype` [B, S, E]. Ids from `vocab` on are the extra rows, a parameter of their own."""
        base = jnp.take(self.embedding, jnp.minimum(tokens, self.cfg.vocab - 1), axis=0)
        if self.cfg.extra_vocab:
            extra = jnp.take(self.new_embedding, jnp.maximum(tokens - self.cfg.vocab, 0), axis=0)
            base = jnp.where((tokens >= self.cfg.vocab)[..., None], extra, base)
        # A table that is split by width gives rows that are: first rows part, and then tokens, an all-to-all each.
        return channels_to_tokens(base.astype(self.dtype))

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        rule: RowRule,
        *,
        cache: KvCache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KvCache | None]:
        """x [B, S, E], positions int [B, S], rule [B, S] -> (hidden [B, S, E] after the final norm, cache).

        With a cache, the S tokens are appended at its slot `length` and see what the rule allows of all slots: a prompt
        into an empty cache, then one token at a time, is the same function as the whole sequence at once. The caller
        makes sure that `length + S` slots exist. Dropout needs the rng "dropout" when not deterministic.
        """
        c = self.cfg
        if cache is not None:
            if x.shape[1] > cache.slots:
                raise ValueError(f"{x.shape[1]} tokens do not fit a cache of {cache.slots} slots; make it longer.")
            cache = cache.with_rule(rule)
        layer = (jnp.arange(c.layers), jnp.asarray(self._rope_table_of_layer()))
        rule_k = rule if cache is None else cache.rule
        plan = plan_rows(rule, rule_k, kernels=self.attention, block=self.query_block)
        carry = (x.astype(self.dtype), None if cache is None else (cache.k, cache.v))
        length = jnp.zeros((), jnp.int32) if cache is None else cache.length
        (x, kv), _ = self.blocks(carry, layer, self._rope(positions), plan, length, deterministic)
        if cache is not None and kv is not None:
            cache = dataclasses.replace(cache, k=kv[0], v=kv[1], length=length + positions.shape[1])
        return rms_norm(x, self.final_norm, c.norm_eps), cache

    def head_matrix(self) -> jax.Array:
        """float32 [Y, E]: the base rows only, so extra tokens cannot be predicted."""
        return self.embedding if self.cfg.tied else self.head

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., E] -> float32 [..., Y]."""
        head = self.head_matrix().astype(self.dtype)
        return jnp.einsum("...e,ye->...y", hidden.astype(self.dtype), head, preferred_element_type=jnp.float32)

    def _rope_table_of_layer(self) -> np.ndarray:
        """int32 [L]: 1 for layers with YaRN, 0 for plain ones."""
        scaled = () if self.cfg.yarn is None else self.cfg.yarn.layers
        return np.isin(np.arange(self.cfg.layers), scaled).astype(np.int32)

    def _rope(self, positions: jax.Array) -> Rope:
        c, yarn = self.cfg, self.cfg.yarn
        tables = [rope_tables(positions, rope_frequencies(c.head_dim, c.rope_theta))]
        if yarn is not None:
            frequencies = yarn_frequencies(
                c.head_dim,
                c.rope_theta,
                factor=yarn.factor,
                beta_fast=yarn.beta_fast,
                beta_slow=yarn.beta_slow,
                original_length=yarn.original_length,
            )
            tables.append(rope_tables(positions, frequencies, yarn.attention_factor))
        return jnp.stack([cos for cos, _ in tables]), jnp.stack([sin for _, sin in tables])
