"""Several questions on one video: as good as whole prompts, and the video is run once."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.infer.generate import Generated, QuestionTokens, generate
from sttts_jax.models.cache import KvCache
from sttts_jax.models.vlm import Vlm
from sttts_jax.ops.attention.row_rule import mask_rows
from sttts_jax.pruning.budget import row_capacity
from sttts_jax.pruning.config import PruneConfig
from tests.models.batches import Sizes, Talk, make_batch
from tests.models.small import CFG
from tests.weights import random_weights

SIZES = Sizes(frames=4, cells=4, unpruned=40, vocab=29)
LENGTH, COUNT = 32, 4
# Videos of four frames and of two, and text alone; up to three questions each, of several lengths.
VIDEOS = [
    Talk(frames=4, lead=2, branches=(1,), seed=1),
    Talk(frames=2, branches=(1,), seed=2),
    Talk(branches=(1,), seed=3),
]
LENGTHS = np.asarray([[3, 1, 6], [0, 5, 2], [4, 0, 0]], np.int32)
TOKENS = np.random.default_rng(0).integers(1, 29, (3, 3, 6)).astype(np.int32)
QUESTIONS = QuestionTokens(jnp.asarray(np.where(np.arange(6) < LENGTHS[..., None], TOKENS, 0)), jnp.asarray(LENGTHS))


def _model(prune: PruneConfig) -> Vlm:
    return Vlm(CFG, prune, row_capacity(SIZES.frames, prune.removed, SIZES.cells), LENGTH)


@functools.cache
def _params(prune: PruneConfig) -> Any:
    init = functools.partial(_model(prune).init, batch=make_batch([VIDEOS[:1]], SIZES), rng=jax.random.key(0))
    return random_weights(nn.unbox(jax.eval_shape(init, jax.random.key(0))))


def _prompt(video: int, question: int) -> dict[str, np.ndarray]:
    """The video and one question as one row."""
    batch = make_batch([[VIDEOS[video]]], SIZES)
    end, size = int((batch["example"][0] >= 0).sum()), LENGTHS[video, question]
    own = slice(end, end + size)
    batch["tokens"][0, own], batch["example"][0, own] = TOKENS[video, question, :size], 0
    batch["segment"][0, own], batch["position"][0, own] = 0, end + np.arange(size)
    return batch


def _answer(model: Vlm, *args: Any, **settings: Any) -> Generated:
    return generate(model, *args, **{"max_new_tokens": COUNT, "stop_ids": (), **settings})


SETTINGS = [
    PruneConfig(),
    PruneConfig(method="random"),
    *(
        pytest.param(prune, marks=pytest.mark.slow)
        for prune in (PruneConfig(positions="original"), PruneConfig(fraction="0"), PruneConfig(method="none"))
    ),
]


@pytest.mark.parametrize("prune", SETTINGS, ids=lambda p: f"{p.method}-{p.removed}-{p.positions}")
def test_logits_are_those_of_whole_prompts(prune: PruneConfig) -> None:
    """After the questions and after each decoded token; the tokens decoded are arbitrary, and differ by question."""
    model, params = _model(prune), _params(prune)
    slots = LENGTH + 3 * (6 + COUNT)
    run = {name: jax.jit(functools.partial(model.apply, method=name)) for name in ("extend", "decode")}
    prefill = jax.jit(lambda b, key: model.apply(params, b, LENGTH + COUNT, key, method="prefill"))
    shared = jax.jit(lambda b, key: model.apply(params, b, slots, key, method="prefill_prefix"))
    said = np.random.default_rng(1).integers(1, 29, (3, 3, COUNT)).astype(np.int32)
    for video, talk in enumerate(VIDEOS):
        key = jax.random.key(video)  # of the methods that draw
        cache, position, _ = shared(make_batch([[talk]], SIZES), key)
        mine = slice(video, video + 1)
        logits, cache, positions = run["extend"](params, *(x[mine] for x in QUESTIONS), position, cache)
        got = [logits]
        for step in range(COUNT):
            logits, cache = run["decode"](params, said[mine, :, step], positions + step, cache)
            got.append(logits)
        for question in np.flatnonzero(LENGTHS[video]):
            want, store, place, _ = prefill(_prompt(video, question), key)
            np.testing.assert_array_equal(positions[0, question], place[0])
            for step in range(COUNT + 1):
                np.testing.assert_allclose(got[step][0, question], want[0], atol=1e-5 * np.abs(want).max())
                if step < COUNT:
                    want, store = run["decode"](params, said[mine, question, step], place + step, store)


def test_answers_are_those_of_whole_prompts() -> None:
    """Greedy, with a stop token; questions that are not there hold nobody up."""
    prune = PruneConfig()
    model, params = _model(prune), _params(prune)
    asked = [(video, question) for video, question in np.argwhere(LENGTHS)]
    prompts = jax.tree.map(lambda *x: np.concatenate(x), *(_prompt(*which) for which in asked))
    free = jax.jit(lambda batch: _answer(model, params, batch))(prompts)
    assert len(np.unique(free.tokens)) > 4, "constant answers prove little"
    stop = (int(free.tokens[0, 1]),)
    run = jax.jit(lambda batch, asked=None: _answer(model, params, batch, stop_ids=stop, questions=asked))
    want, got = run(prompts), run(make_batch([[v] for v in VIDEOS], SIZES), QUESTIONS)
    assert got.tokens.shape == (3, 3, COUNT) and got.lengths.shape == (3, 3)
    for row, which in enumerate(asked):
        np.testing.assert_array_equal(got.tokens[tuple(which)], want.tokens[row])
        np.testing.assert_array_equal(got.lengths[tuple(which)], want.lengths[row])
        np.testing.assert_array_equal(got.kept[which[0]], want.kept[row])
        np.testing.assert_allclose(got.scores[which[0]], want.scores[row], atol=1e-6)


def test_a_question_does_not_depend_on_the_others() -> None:
    """Bitwise: other tokens in its neighbours, and none."""
    prune, batch = PruneConfig(), make_batch([[v] for v in VIDEOS], SIZES)
    model, params = _model(prune), _params(prune)
    run = jax.jit(lambda q: _answer(model, params, batch, questions=q))
    whole = run(QUESTIONS)
    for question in range(3):
        others = jnp.arange(3) != question
        for tokens, lengths in (
            (jnp.where(others[:, None], 7, QUESTIONS.tokens), jnp.where(others, 6, QUESTIONS.lengths)),
            (jnp.where(others[:, None], 0, QUESTIONS.tokens), jnp.where(others, 0, QUESTIONS.lengths)),
        ):
            alone = run(QuestionTokens(tokens, lengths))
            asked = LENGTHS[:, question] > 0
            np.testing.assert_array_equal(alone.tokens[asked, question], whole.tokens[asked, question])


@pytest.mark.slow
def test_sampling_from_the_likeliest_token_alone_is_greedy() -> None:
    prune, batch = PruneConfig(), make_batch([[v] for v in VIDEOS], SIZES)
    model, params = _model(prune), _params(prune)
    want = _answer(model, params, batch, questions=QUESTIONS)
    draw = {"temperature": 2.0, "top_p": 1e-6, "rng": jax.random.key(0)}
    got = _answer(model, params, batch, questions=QUESTIONS, **draw)
    np.testing.assert_array_equal(got.tokens[LENGTHS > 0], want.tokens[LENGTHS > 0])
    got = _answer(model, params, batch, questions=QUESTIONS, **{**draw, "top_p": 1.0})
    assert (got.tokens != want.tokens).any()


def test_a_random_method_refuses_without_a_key() -> None:
    prune = PruneConfig(method="random")
    batch = make_batch([[v] for v in VIDEOS], SIZES)
    with pytest.raises(ValueError, match="needs a random key"):
        _answer(_model(prune), _params(prune), batch, questions=QUESTIONS)


def test_branches_see_what_was_there_and_themselves() -> None:
    cache = KvCache.empty(CFG.llm, 1, 8, jnp.float32)
    text = cache.branch_rule(jnp.ones((1, 1, 2), bool))
    cache = cache.with_rule(text).replace(length=jnp.int32(2))
    first = cache.branch_rule(jnp.asarray([[[True, True], [True, False]]]))
    cache = cache.with_rule(first).replace(length=jnp.int32(6))
    second = cache.branch_rule(jnp.ones((1, 2, 1), bool))
    seen = mask_rows(second, cache.with_rule(second).rule)[0].astype(int).tolist()
    #        text  branch 0  branch 1 and padding  new tokens
    assert seen == [[1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0, 1]]


def _lowered(batch: dict[str, np.ndarray], questions: QuestionTokens | None) -> jax.stages.Lowered:
    prune = PruneConfig()
    model, params = _model(prune), _params(prune)
    return jax.jit(lambda p, b, q: _answer(model, p, b, questions=q)).lower(params, batch, questions)


def test_a_video_is_run_once_for_all_its_questions() -> None:
    """By counted operations, a loop's body once: four questions on a video cost little more than one does."""
    video = make_batch([VIDEOS[:1]], SIZES)

    def flops(batch: dict[str, np.ndarray], questions: QuestionTokens | None) -> float:
        return _lowered(batch, questions).cost_analysis()["flops"]

    def ask(count: int) -> QuestionTokens:
        return QuestionTokens(jnp.ones((1, count, 3), jnp.int32), jnp.full((1, count), 3))

    one, four = flops(video, ask(1)), flops(video, ask(4))
    prompts = flops(jax.tree.map(lambda x: np.repeat(x, 4, axis=0), video), None)
    assert four < 1.5 * one and prompts > 2 * four


@pytest.mark.optimized
def test_decoding_writes_the_cache_in_place() -> None:
    """No copy of a cache's size inside the loops of the compiled program."""
    slots = LENGTH + 3 * (6 + COUNT)
    cache = f"f32[{CFG.llm.layers},3,{slots},{CFG.llm.kv_heads},{CFG.llm.head_dim}]"
    text = _lowered(make_batch([[v] for v in VIDEOS], SIZES), QUESTIONS).compile().as_text()
    loops = [line for line in text[: text.index("\nENTRY ")].splitlines() if f" = {cache}" in line]
    assert any("dynamic-update-slice" in line for line in loops)
    assert not [line for line in loops if " copy(" in line]
