"""Text generation: one prefill and a compiled decode loop over a static KV cache, greedy or sampled, in batches.

Several questions on one video share its prefill, and its part of the cache in every decode step.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class QuestionTokens(NamedTuple):
    """Up to Q questions on what each row holds: tokens int32 [B, Q, T], padded on the right; lengths int32 [B, Q],
    0 for no question."""

    tokens: jax.Array
    lengths: jax.Array


class Generated(NamedTuple):
    """What came out of a batch of prompts.

    tokens    int32 [B, n], with questions [B, Q, n]; from its first stop token on, an answer repeats it
    lengths   int32 [B] or [B, Q], tokens before the first stop token (n if there is none)
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
    questions: QuestionTokens | None = None,
) -> Generated:
    """Continues every row of `batch`, which holds one prompt a row, padded on the right.

    With `questions`, a row of `batch` is what its questions have in common (the video and all before and after it up to
    the question's first token). It is run once, and every question is answered as if it had been asked alone.

    `model` (as `models.vlm.Vlm`) has the static row length `length` and the methods
        prefill(batch, cache_length, rng) -> (logits [B, Y] at each row's last token, cache, next position [B],
            ViT output or None)
        decode(token [B], position [B], cache) -> (logits [B, Y], cache)
    and for questions
        prefill_prefix(batch, cache_length, rng) -> (cache, next position [B], ViT output or None)
        extend(tokens [B, Q, T], lengths [B, Q], position [B], cache) -> (logits [B, Q, Y], cache, positions [B, Q])
        decode(token [B, Q], position [B, Q], cache) -> (logits [B, Q, Y], cache)
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
        questions,
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
    questions: QuestionTokens | None,
    rng: jax.Array | None,
    temperature: jax.Array,
    top_p: jax.Array,
) -> Generated:
    stops = jnp.asarray(stop_ids or (-1,), jnp.int32)
    # Without a key the model gets None: one that draws its survivors at random must refuse, not repeat itself.
    select_rng, draw_rng = (None, None) if rng is None else jax.random.split(rng)
    draw_rng = draw_rng if sample else None

    def apply(method: str, *args: Any) -> Any:
        return model.apply(params, *args, method=method)

    def pick(logits: jax.Array, step: jax.Array) -> jax.Array:
        if draw_rng is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        flat = sample_tokens(
            jax.random.fold_in(draw_rng, step), logits.reshape(-1, logits.shape[-1]), temperature, top_p
        )
        return flat.reshape(logits.shape[:-1])

    def keep_going(state: tuple) -> jax.Array:
        step, finished = state[0], state[2]
        return (step < count) & ~jnp.all(finished)

    def step_once(state: tuple) -> tuple:
        step, token, finished, position, cache, out = state
        logits, cache = apply("decode", token, position, cache)
        token = jnp.where(finished, token, pick(logits, step))
        out = jnp.where(jnp.arange(count) >= step, token[..., None], out)
        return step + 1, token, finished | jnp.isin(token, stops), position + 1, cache, out

    if questions is None:
        logits, cache, position, seen = apply("prefill", batch, model.length + count, select_rng)
        unasked = jnp.zeros(position.shape, bool)
    else:
        _, most, longest = questions.tokens.shape
        slots = model.length + most * (longest + count)
        cache, position, seen = apply("prefill_prefix", batch, slots, select_rng)
        logits, cache, position = apply("extend", *questions, position, cache)
        unasked = questions.lengths == 0
    token = pick(logits, jnp.int32(0))
    out = jnp.broadcast_to(token[..., None], (*token.shape, count))
    # Nobody waits for the answers to questions that are not there.
    state = (jnp.int32(1), token, unasked | jnp.isin(token, stops), position, cache, out)
    tokens = jax.lax.while_loop(keep_going, step_once, state)[-1]
    stopped = jnp.isin(tokens, stops)
    lengths = jnp.where(stopped.any(axis=-1), jnp.argmax(stopped, axis=-1), count)
    kept = None if seen is None else seen.kept.mask
    scores = None if seen is None or seen.logits is None else jax.nn.sigmoid(seen.logits)
    return Generated(tokens, lengths.astype(jnp.int32), kept, scores)


def sample_tokens(key: jax.Array, logits: jax.Array, temperature: jax.Array, top_p: jax.Array) -> jax.Array:
    """One token per row of logits [B, Y]; a row's draw depends on its place in the batch, not on the other rows."""
    logits = logits.astype(jnp.float32) / temperature
    # Sorting a vocabulary costs more than a small model's step, so it is left out where nothing is cut off.
    logits = jax.lax.cond(top_p < 1, _likeliest, lambda logits, _: logits, logits, top_p)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(logits.shape[0]))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _likeliest(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """logits [B, Y] without the tokens beyond the likeliest ones that hold `top_p` together."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    share = jax.nn.softmax(ordered, axis=-1)
    # A token stays while the ones above it hold less than top_p, so the likeliest always stays.
    inside = jnp.cumsum(share, axis=-1) - share < top_p
    lowest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)
