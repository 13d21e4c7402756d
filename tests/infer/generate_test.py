"""Generation on a text-only model: the tokens of repeated full forward passes, stops, sampling, one compilation."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.infer import generate as module
from sttts_jax.infer.generate import GenerationConfig, generate
from sttts_jax.models.cache import KvCache
from sttts_jax.models.config import LlmConfig
from sttts_jax.models.llm import Llm
from sttts_jax.ops.attention.row_rule import RowRule

CFG = LlmConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, vocab=40, extra_vocab=4)
LENGTHS = np.asarray([5, 9, 1])
PROMPTS = np.random.default_rng(0).integers(0, 44, (3, 9)) * (np.arange(9) < LENGTHS[:, None])
EXAMPLE = np.where(np.arange(9) < LENGTHS[:, None], 0, -1)
BATCH = {"tokens": jnp.asarray(PROMPTS, jnp.int32), "example": jnp.asarray(EXAMPLE, jnp.int32)}


class TextModel(nn.Module):
    """A language model with the two methods that `generate` calls; odd tokens play the bidirectional vision set."""

    length: int = 9

    def setup(self) -> None:
        self.llm = Llm(CFG)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.llm.logits(self._run(batch, None)[0])

    def _run(self, batch: dict[str, jax.Array], store: KvCache | None) -> tuple[jax.Array, KvCache | None]:
        tokens, example = batch["tokens"], batch["example"]
        prompt = jnp.arange(tokens.shape[1]) < batch.get("prompt", jnp.sum(example >= 0, axis=1))[:, None]
        rule = RowRule.of((tokens % 2 > 0) & prompt, example)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return self.llm(self.llm.embed(tokens), positions, rule, cache=store)

    def prefill(self, batch: dict[str, jax.Array], cache_length: int, rng: jax.Array | None) -> tuple[Any, ...]:
        rows = batch["tokens"].shape[0]
        hidden, store = self._run(batch, KvCache.empty(CFG, rows, cache_length, jnp.float32))
        count = jnp.sum(batch["example"] >= 0, axis=1)
        return self.llm.logits(hidden[jnp.arange(rows), count - 1]), store, count, None

    def decode(self, token: jax.Array, position: jax.Array, store: KvCache) -> tuple[jax.Array, KvCache]:
        x = self.llm.embed(token[:, None])
        hidden, store = self.llm(
            x, position[:, None], store.branch_rule(jnp.ones((*token.shape, 1, 1), bool)), cache=store
        )
        return self.llm.logits(hidden[:, 0]), store


MODEL = TextModel()


@cache
def _params() -> dict:
    params = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), BATCH))
    return jax.tree.map(lambda x: 3.0 * x, params)  # far from uniform, so that the argmax is clear


@cache
def _by_full_forward(count: int) -> np.ndarray:
    """Greedy tokens by running the whole, ever longer sequence again for every token."""
    forward = jax.jit(MODEL.apply)
    out = np.zeros((3, count), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens = np.zeros((1, 9 + count), np.int32)
        tokens[0, :length] = PROMPTS[row, :length]
        for step in range(count):
            example = np.where(np.arange(9 + count) < length + step, 0, -1)[None]
            logits = forward(_params(), {"tokens": tokens, "example": example, "prompt": np.asarray([length])})
            out[row, step] = tokens[0, length + step] = int(logits[0, length + step - 1].argmax())
    return out


def test_greedy_equals_repeated_full_forward() -> None:
    out = generate(MODEL, _params(), BATCH, max_new_tokens=8, stop_ids=())
    np.testing.assert_array_equal(out.tokens, _by_full_forward(8))
    np.testing.assert_array_equal(out.lengths, [8, 8, 8])
    assert out.kept is None and out.scores is None


def test_a_finished_row_repeats_its_stop_token_and_the_others_go_on() -> None:
    free = _by_full_forward(8)
    stop = int(free[0, 2])
    out = generate(MODEL, _params(), BATCH, max_new_tokens=8, stop_ids=(stop, 10_000))
    for row in range(3):
        hits = np.flatnonzero(free[row] == stop)
        end = hits[0] if hits.size else 8
        assert out.lengths[row] == end
        np.testing.assert_array_equal(out.tokens[row, :end], free[row, :end])
        assert (out.tokens[row, end:] == stop).all()
    assert out.lengths[0] <= 2


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    together = generate(MODEL, _params(), BATCH, max_new_tokens=8, stop_ids=())
    alone = generate(MODEL, _params(), jax.tree.map(lambda x: x[:1], BATCH), max_new_tokens=8, stop_ids=())
    np.testing.assert_array_equal(together.tokens[:1], alone.tokens)


def test_sampling_repeats_with_its_key_and_differs_with_another() -> None:
    def draw(seed: int, top_p: float = 1.0) -> jax.Array:
        random = {"temperature": 2.0, "top_p": top_p, "rng": jax.random.key(seed)}
        return generate(MODEL, _params(), BATCH, max_new_tokens=8, stop_ids=(), **random).tokens

    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    # So small a share leaves the likeliest token alone.
    np.testing.assert_array_equal(draw(0, top_p=1e-6), _by_full_forward(8))


def test_settings_are_not_part_of_the_compiled_program() -> None:
    before = module._generate._cache_size()
    for temperature in (0.5, 1.0, 1.5):
        for seed, top_p in ((0, 0.9), (1, 0.5)):
            rng = jax.random.key(seed)
            generate(
                MODEL, _params(), BATCH, max_new_tokens=3, stop_ids=(1,), temperature=temperature, top_p=top_p, rng=rng
            )
    assert module._generate._cache_size() == before + 1


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 2.5}, {"max_new_tokens": True}, {"temperature": "hot"}, {"top_p": None}, {"seed": 2**64}],
)
def test_settings_of_another_kind_are_refused(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"^{name}=.* must be a"):
        GenerationConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "ask for at least one token"),
        ({"temperature": -1.0}, "use 0 for greedy"),
        ({"temperature": 1.0}, "needs rng"),
        ({"top_p": 0.0}, "use a share"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(MODEL, _params(), BATCH, **{"max_new_tokens": 4, "stop_ids": (), **settings})
