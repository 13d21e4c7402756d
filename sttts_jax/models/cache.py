"""The KV cache of generation: static buffers, so that prefill and every decode step compile once."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sttts_jax.models.config import LlmConfig
from sttts_jax.ops.attention.row_rule import RowRule

BRANCH_STRIDE = 1 << 20  # of the orders of branches: more than the slots of any cache


@flax.struct.dataclass
class KvCache:
    """Keys and values of every layer, after norm and rope, and the rule of every slot.

    k, v [L, B, Smax, Hkv, d]; rule [B, Smax] (example -1: empty or padding); length int32 scalar, slots written so far.
    """

    k: jax.Array
    v: jax.Array
    rule: RowRule
    length: jax.Array

    @classmethod
    def empty(cls, cfg: LlmConfig, batch: int, slots: int, dtype: Any) -> "KvCache":
        """A cache without tokens, for `batch` rows of up to `slots` tokens: the padded prompt, and new ones."""
        shape = (cfg.layers, batch, slots, cfg.kv_heads, cfg.head_dim)
        zero = jnp.zeros((batch, slots), jnp.int32)
        rule = RowRule(order=zero, vision=zero > 0, example=zero - 1, segment=zero)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), rule, jnp.zeros((), jnp.int32))

    @property
    def slots(self) -> int:
        """Smax, static."""
        return self.k.shape[2]

    def branch_rule(self, valid: jax.Array) -> RowRule:
        """The rule [B, Q * T] of text tokens that continue example 0 of each row in Q branches; valid bool [B, Q, T].

        A branch sees what was there before, its own earlier tokens, and nothing of other branches: those before it have
        a lower segment, those after it a higher order. What was there before needs segments from 0 up.
        """
        branch = jnp.arange(valid.shape[1])[:, None]
        fields = RowRule(
            order=self.length + branch * BRANCH_STRIDE + jnp.arange(valid.shape[2]),
            vision=jnp.zeros((), bool),
            example=jnp.where(valid, 0, -1),
            segment=branch - valid.shape[1] + 1,
        )
        return RowRule(*(jnp.broadcast_to(field, valid.shape).reshape(valid.shape[0], -1) for field in fields))

    def with_rule(self, rule: RowRule) -> "KvCache":
        """Writes the rule [B, S] of new tokens at slot `length`; `length` stays until their keys are written too."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, self.length))

        return dataclasses.replace(self, rule=RowRule(*(put(*pair) for pair in zip(self.rule, rule, strict=True))))


def write_layer(buffer: jax.Array, layer: jax.Array, length: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Writes new [B, S, Hkv, d] into buffer [L, B, Smax, Hkv, d] at slot `length` of `layer`; (buffer, that layer)."""
    buffer = jax.lax.dynamic_update_slice(buffer, new[None].astype(buffer.dtype), (layer, 0, length, 0, 0))
    return buffer, jax.lax.dynamic_index_in_dim(buffer, layer, 0, keepdims=False)
