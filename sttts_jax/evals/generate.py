"""Text generation: one prefill and a compiled decode loop over a static KV cache, greedy or sampled, in batches."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Generated(NamedTuple):
    """What came out of a batch of prompts.

    tokens    int32 [B, n]; from its first stop token on, a row repeats it
    lengths   int32 [B], tokens before the first stop token (n if there is none)
    kept      bool [B, F, C], cells that lived, or None for a model without vision
    scores    float32 [B, F, C] in (0, 1), or None without a scorer
    """

    tokens: jax.Array
    lengths: jax.Array
    kept: jax.Array | None
    scores: jax.Array | None


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
) -> Generated:
    """Continues every row of `batch`, which holds one prompt a row, padded on the right.

    `model` (as `models.vlm.Vlm`) has the static row length `length` and two methods:
        prefill(batch, cache_length, rng) -> (logits [B, Y] at each row's last token, cache, next position [B],
            ViT output or None)
        decode(token [B], position [B], cache) -> (logits [B, Y], cache)
    `params` are its variables. `temperature` 0 is greedy; above, `rng` is needed and `top_p` keeps the smallest set of
    tokens with that much probability. Compiles once per shape; raises ValueError on a bad setting.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; ask for at least one token.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; use 0 for greedy or a positive number.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; use a share in (0, 1].")
    if temperature > 0 and rng is None:
        raise ValueError("Sampling (temperature > 0) needs rng, a key from jax.random.key.")
    return _generate(
        model,
        max_new_tokens,
        tuple(int(i) for i in stop_ids),
        temperature > 0,
        params,
        batch,
        rng,
        jnp.float32(temperature),
        jnp.float32(top_p),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    model: nn.Module,
    count: int,
    stop_ids: tuple[int, ...],
    sample: bool,
    params: Any,
    batch: dict[str, jax.Array],
    rng: jax.Array | None,
    temperature: jax.Array,
    top_p: jax.Array,
) -> Generated:
    stops = jnp.asarray(stop_ids or (-1,), jnp.int32)
    # Without a key the model gets None: one that draws its survivors at random must refuse, not repeat itself.
    select_rng, draw_rng = (None, None) if rng is None else jax.random.split(rng)
    draw_rng = draw_rng if sample else None

    def pick(logits: jax.Array, step: jax.Array) -> jax.Array:
        if draw_rng is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return sample_tokens(jax.random.fold_in(draw_rng, step), logits, temperature, top_p)

    def keep_going(state: tuple) -> jax.Array:
        step, finished = state[0], state[2]
        return (step < count) & ~jnp.all(finished)

    def step_once(state: tuple) -> tuple:
        step, token, finished, position, cache, out = state
        logits, cache = model.apply(params, token, position, cache, method="decode")
        token = jnp.where(finished, token, pick(logits, step))
        out = jnp.where(jnp.arange(count) >= step, token[:, None], out)
        return step + 1, token, finished | jnp.isin(token, stops), position + 1, cache, out

    slots = model.length + count
    logits, cache, position, seen = model.apply(params, batch, slots, select_rng, method="prefill")
    token = pick(logits, jnp.int32(0))
    out = jnp.broadcast_to(token[:, None], (token.shape[0], count))
    state = (jnp.int32(1), token, jnp.isin(token, stops), position, cache, out)
    tokens = jax.lax.while_loop(keep_going, step_once, state)[-1]
    stopped = jnp.isin(tokens, stops)
    lengths = jnp.where(stopped.any(axis=-1), jnp.argmax(stopped, axis=-1), count)
    kept = None if seen is None else seen.kept.mask
    scores = None if seen is None or seen.logits is None else jax.nn.sigmoid(seen.logits)
    return Generated(tokens, lengths.astype(jnp.int32), kept, scores)


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
