"""One token after another: `begin` chooses the first from the logits of a prompt, `go_on` each further one.

Everything that generates is a loop around these two: `generate`, the programs of `engine`, and the benchmark.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class SamplerState(NamedTuple):
    """How tokens are drawn: a key, which every step folds its number into, and float32 scalars, see `sample_tokens`."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array


class DecodeState(NamedTuple):
    """Answers after their last token. [..] is [B], or [B, Q] with questions.

    step      int32 scalar, tokens chosen so far
    token     int32 [..], the last one
    finished  bool [..], whether a stop token was chosen; an answer repeats it from then on
    position  int32 [..], of the token
    cache     holds all before the token
    """

    step: jax.Array
    token: jax.Array
    finished: jax.Array
    position: jax.Array
    cache: Any


def begin(
    logits: jax.Array, position: jax.Array, cache: Any, stop_ids: Sequence[int], sampler: SamplerState | None = None
) -> DecodeState:
    """After the first token: logits [.., Y] at the end of each prompt, the next position int32 [..], the cache.

    Without `sampler` the likeliest token is taken, here and in `go_on`.
    """
    token = _choose(logits, jnp.int32(0), sampler)
    return DecodeState(jnp.int32(1), token, is_stop(token, stop_ids), position, cache)


def go_on(
    model: nn.Module,
    variables: Any,
    state: DecodeState,
    stop_ids: Sequence[int],
    sampler: SamplerState | None = None,
) -> DecodeState:
    """After one more token of every answer. `model` decodes as `models.vlm.Vlm` does."""
    logits, cache = model.apply(variables, state.token, state.position, state.cache, method="decode")  # [.., Y]
    token = jnp.where(state.finished, state.token, _choose(logits, state.step, sampler))  # [..]
    return DecodeState(state.step + 1, token, state.finished | is_stop(token, stop_ids), state.position + 1, cache)


def _choose(logits: jax.Array, step: jax.Array, sampler: SamplerState | None) -> jax.Array:
    """logits [.., Y] -> int32 [..]."""
    if sampler is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    key = jax.random.fold_in(sampler.key, step)
    flat = logits.reshape(-1, logits.shape[-1])  # [B * Q, Y]
    return sample_tokens(key, flat, sampler.temperature, sampler.top_p).reshape(logits.shape[:-1])


def is_stop(token: jax.Array, stop_ids: Sequence[int]) -> jax.Array:
    """bool of the shape of `token`: which ends an answer."""
    return jnp.isin(token, jnp.asarray(tuple(stop_ids) or (-1,), jnp.int32))  # no token is -1


def sample_tokens(key: jax.Array, logits: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One token per row of logits [B, Y] -> int32 [B], from the likeliest that hold `top_p` together.

    A row's draw depends on its place in the batch, not on the other rows.
    """
    logits = logits.astype(jnp.float32) / temperature
    # Sorting a vocabulary costs more than a small model's step, so it is left out where nothing is cut off.
    logits = jax.lax.cond(top_p < 1, _likeliest, lambda logits, _: logits, logits, top_p)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(logits.shape[0]))  # [B]
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _likeliest(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """logits [B, Y] without the tokens beyond the likeliest ones that hold `top_p` together."""
    ordered = jnp.sort(logits, axis=-1, descending=True)  # [B, Y]
    share = jax.nn.softmax(ordered, axis=-1)  # [B, Y]
    # A token stays while the ones above it hold less than top_p, so the likeliest always stays.
    inside = jnp.cumsum(share, axis=-1) - share < top_p
    lowest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)  # [B, 1]
    return jnp.where(logits >= lowest, logits, -jnp.inf)
