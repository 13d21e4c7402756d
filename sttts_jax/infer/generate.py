"""Answers in batches: one prefill and a compiled loop of `decode.go_on` over a static KV cache, greedy or sampled.

Several questions on one video share its prefill, and its part of the cache in every decode step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax.data.styles import style_problem
from sttts_jax.infer.decode import DecodeState, SamplerState, begin, go_on, is_stop
from sttts_jax.train.kinds import check_kinds, check_seed


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How to answer.

    max_new_tokens  of an answer
    temperature     0 takes the likeliest token; above, tokens are drawn
    top_p           share in (0, 1] that the fewest tokens to draw from have together
    seed            of the draws, and of methods that prune at random
    style           of Molmo2's data, put before the question; "user_qa" leaves it as it is

    Raises ValueError on a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    style: str = "user_qa"

    def __post_init__(self) -> None:
        check_kinds("", self)
        check_seed(self.seed)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; ask for at least one token")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; use 0 for greedy or a positive number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use a share in (0, 1]")
        if self.top_p < 1 and not self.temperature:
            raise ValueError(
                f"top_p is {self.top_p}, which changes nothing at temperature 0; give a temperature above 0"
            )
        problem = style_problem(self.style)
        if problem:
            raise ValueError(problem)


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
    GenerationConfig(max_new_tokens, temperature, top_p)  # refuses what is out of range
    if temperature > 0 and rng is None:
        raise ValueError("sampling (temperature > 0) needs rng, a key from jax.random.key")
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
    # Without a key the model gets None: one that draws its survivors at random must refuse, not repeat itself.
    select_rng, draw_rng = (None, None) if rng is None else jax.random.split(rng)
    sampler = SamplerState(draw_rng, temperature, top_p) if sample and draw_rng is not None else None
    logits, position, cache, seen = _prefill(model, count, params, batch, questions, select_rng)
    state = begin(logits, position, cache, stop_ids, sampler)
    if questions is not None:  # nobody waits for the answers to questions that are not there
        state = state._replace(finished=state.finished | (questions.lengths == 0))

    def more(loop: tuple[DecodeState, jax.Array]) -> jax.Array:
        state, _ = loop
        return (state.step < count) & ~jnp.all(state.finished)

    def one(loop: tuple[DecodeState, jax.Array]) -> tuple[DecodeState, jax.Array]:
        before, out = loop
        state = go_on(model, params, before, stop_ids, sampler)
        # Written to the end: whoever stops here has filled the rest.
        return state, jnp.where(jnp.arange(count) >= before.step, state.token[..., None], out)  # [.., n]

    out = jnp.broadcast_to(state.token[..., None], (*state.token.shape, count))  # [.., n]
    tokens = jax.lax.while_loop(more, one, (state, out))[1]
    stopped = is_stop(tokens, stop_ids)  # [.., n]
    lengths = jnp.where(stopped.any(axis=-1), jnp.argmax(stopped, axis=-1), count)  # [..]
    kept = None if seen is None else seen.kept.mask  # [B, F, C]
    scores = None if seen is None or seen.logits is None else jax.nn.sigmoid(seen.logits)  # [B, F, C]
    return Generated(tokens, lengths.astype(jnp.int32), kept, scores)


def _prefill(
    model: nn.Module,
    count: int,
    params: Any,
    batch: dict[str, jax.Array],
    questions: QuestionTokens | None,
    rng: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """(logits [.., Y] at the end of each prompt, next position [..], cache with room for the answers, ViT output)."""
    if questions is None:
        logits, cache, position, seen = model.apply(params, batch, model.length + count, rng, method="prefill")
        return logits, position, cache, seen
    _, most, longest = questions.tokens.shape
    slots = model.length + most * (longest + count)
    cache, position, seen = model.apply(params, batch, slots, rng, method="prefill_prefix")
    logits, cache, position = model.apply(params, *questions, position, cache, method="extend")
    return logits, position, cache, seen
