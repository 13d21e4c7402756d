"""Text generation: one prefill and a compiled decode loop over a static KV cache; greedy or sampled, many rows at once."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Generated(NamedTuple):
    """tokens int32 [B, n]: what was generated; from the first stop token on, a row repeats it. lengths int32 [B]:
    tokens before the first stop token (n if there is none)."""

    tokens: jax.Array
    lengths: jax.Array


def generate(
    model: nn.Module,
    params: Any,
    batch: dict[str, jax.Array],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    rng: jax.Array | None = None,
    prompt_length: int | None = None,
) -> Generated:
    """Continues every row of `batch`, which holds one prompt a row, padded on the right.

    `model` has two methods:
        prefill(batch, cache_length=slots) -> (logits [B, Y] at each row's last token, cache, next position [B])
        decode(token [B], position [B], cache) -> (logits [B, Y], cache)
    `params` are its variables. `prompt_length` is the static length of a row inside the model, by default the width of
    `batch["tokens"]`, which is never too short. `temperature` 0 is greedy; above, `rng` is needed and `top_p` keeps the
    smallest set of tokens with that much probability. Compiles once per shape; raises ValueError on a bad setting.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for at least one token.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; use 0 for greedy or a positive number.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; use a share in (0, 1].")
    if temperature > 0 and rng is None:
        raise ValueError("Sampling (temperature > 0) needs rng, a key from jax.random.key.")
    if prompt_length is None:
        prompt_length = batch["tokens"].shape[1]
    rng = jax.random.key(0) if rng is None else rng
    return _generate(
        model,
        max_new_tokens,
        tuple(int(i) for i in stop_ids),
        prompt_length + max_new_tokens,
        temperature > 0,
        params,
        batch,
        rng,
        jnp.float32(temperature),
        jnp.float32(top_p),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    model: nn.Module,
    count: int,
    stop_ids: tuple[int, ...],
    slots: int,
    sample: bool,
    params: Any,
    batch: dict[str, jax.Array],
    rng: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
) -> Generated:
    stops = jnp.asarray(stop_ids or (-1,), jnp.int32)

    def pick(logits: jax.Array, step: jax.Array) -> jax.Array:
        if not sample:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return sample_tokens(jax.random.fold_in(rng, step), logits, temperature, top_p)

    def keep_going(state: tuple) -> jax.Array:
        step, finished = state[0], state[2]
        return (step < count) & ~jnp.all(finished)

    def step_once(state: tuple) -> tuple:
        step, token, finished, position, cache, out = state
        logits, cache = model.apply(params, token, position, cache, method="decode")
        token = jnp.where(finished, token, pick(logits, step))
        out = jnp.where(jnp.arange(count) >= step, token[:, None], out)
        return step + 1, token, finished | jnp.isin(token, stops), position + 1, cache, out

    logits, cache, position = model.apply(params, batch, method="prefill", cache_length=slots)
    token = pick(logits, jnp.int32(0))
    out = jnp.broadcast_to(token[:, None], (token.shape[0], count))
    state = (jnp.int32(1), token, jnp.isin(token, stops), position, cache, out)
    tokens = jax.lax.while_loop(keep_going, step_once, state)[-1]
    stopped = jnp.isin(tokens, stops)
    lengths = jnp.where(stopped.any(axis=-1), jnp.argmax(stopped, axis=-1), count)
    return Generated(tokens, lengths.astype(jnp.int32))


def sample_tokens(key: jax.Array, logits: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One token per row of logits [B, Y]; a row's draw depends on its place in the batch, not on the other rows."""
    logits = logits.astype(jnp.float32) / temperature
    ordered = jnp.sort(logits, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    # A token stays while the ones above it hold less than top_p, so the likeliest always stays.
    inside = jnp.cumsum(share, axis=-1) - share < top_p
    lowest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(logits.shape[0]))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
