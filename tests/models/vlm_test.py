"""The whole model: packed rows equal their examples alone, gradients arrive everywhere, generation goes on rightly."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.infer.generate import generate
from sttts_jax.models.connector import Connector
from sttts_jax.models.vlm import Vlm, pixels_to_patches
from sttts_jax.pruning.budget import n_kept, row_capacity
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import METHODS, PruneConfig
from tests.models.batches import Sizes, Talk, make_batch
from tests.models.small import CFG
from tests.weights import random_weights

SIZES = Sizes(frames=4, cells=4, unpruned=48, vocab=29)
LENGTH, TOTAL = 40, SIZES.frames * SIZES.cells
A, B = Talk(frames=2, lead=3, branches=(4, 2), seed=1), Talk(frames=2, lead=1, branches=(3,), seed=2)
ROWS = [[A, B], [Talk(frames=4, seed=3)], [Talk(frames=1, seed=4), Talk(seed=5), Talk(frames=3, seed=6)]]


def _batch(rows: list[list[Talk]]) -> dict[str, np.ndarray]:
    return make_batch(rows, SIZES)


def _model(prune: PruneConfig, **changes: Any) -> Vlm:
    capacity = row_capacity(SIZES.frames, prune.removed, SIZES.cells, items=2)
    return Vlm(**{"cfg": CFG, "prune": prune, "capacity": capacity, "length": LENGTH, **changes})


@functools.cache
def _all_params() -> Any:
    """Random everywhere; norms' scales and the like are not trivial."""
    init = functools.partial(_model(PruneConfig()).init, batch=_batch([[A]]))
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"]
    return random_weights(shapes)


def _params(prune: PruneConfig) -> Any:
    """One set for all methods; those without a scorer have all but the scorer."""
    params = _all_params()
    return params if prune.has_scorer else {**params, "vit": {k: v for k, v in params["vit"].items() if k != "scorer"}}


@functools.cache
def _forward(prune: PruneConfig):
    """(hidden, rule, loss) of a batch."""
    model = _model(prune)

    def run(params: Any, batch: dict[str, jax.Array], rng: jax.Array) -> tuple:
        hidden, prefix = model.apply({"params": params}, batch, rng)
        return hidden, prefix.rows.rule, model.apply({"params": params}, batch, rng, method="loss")

    return jax.jit(run)


def _run(prune: PruneConfig, batch: dict[str, np.ndarray], seed: int = 0) -> tuple:
    return _forward(prune)(_params(prune), batch, jax.random.key(seed))


@pytest.mark.parametrize("positions", ["dense", "original"])
@pytest.mark.parametrize("packing", ["staircase", pytest.param("bins", marks=pytest.mark.slow)])
def test_a_packed_row_is_as_good_as_its_examples_alone(packing: str, positions: str) -> None:
    prune = PruneConfig(packing=packing, positions=positions)
    together, rule, loss = _run(prune, _batch([[A, B]]))
    sums = []
    for example, talk in enumerate((A, B)):
        hidden, alone, part = _run(prune, _batch([[talk]]))
        mine, its = np.asarray(rule.example[0]) == example, np.asarray(alone.example[0]) >= 0
        assert mine.sum() == its.sum() > 0
        np.testing.assert_allclose(together[0][mine], hidden[0][its], atol=1e-4)
        sums.append(part)
    for got, a, b in zip(loss.task, sums[0].task, sums[1].task, strict=True):
        np.testing.assert_allclose(got, a + b, rtol=1e-5)
    np.testing.assert_allclose(loss.aux, sums[0].aux + sums[1].aux, rtol=1e-5)
    assert loss.aux_count == sums[0].aux_count + sums[1].aux_count == 2 * SIZES.cells


def test_loss_is_the_sum_over_rows() -> None:
    _, _, loss = _run(PruneConfig(), _batch(ROWS))
    singles = [_run(PruneConfig(), _batch([row]))[2] for row in ROWS]
    for field in ("cross_entropy", "z", "weight", "correct", "tokens"):
        parts = [getattr(single.task, field) for single in singles]
        np.testing.assert_allclose(getattr(loss.task, field), sum(parts), rtol=1e-5)
    np.testing.assert_allclose(loss.aux, sum(single.aux for single in singles), rtol=1e-5)


@functools.cache
def _gradients(prune: PruneConfig, dtype: Any = jnp.float32, remat: str = "none"):
    model = _model(prune, dtype=dtype, remat=remat)

    def loss(params: Any, batch: dict[str, jax.Array], aux: float) -> jax.Array:
        out = model.apply({"params": params}, batch, method="loss")
        task = (out.task.cross_entropy + 1e-4 * out.task.z) / out.task.weight
        return task + aux * out.aux / jnp.maximum(out.aux_count, 1)

    return jax.jit(jax.value_and_grad(loss))


def test_the_task_loss_alone_reaches_every_part() -> None:
    loss, grads = _gradients(PruneConfig())(_params(PruneConfig()), _batch(ROWS), 0.0)
    assert jnp.isfinite(loss)
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    assert all(np.isfinite(g).all() for _, g in flat)
    silent = {jax.tree_util.keystr(path, simple=True, separator="/") for path, g in flat if not g.any()}
    assert silent <= {"vit/scorer/pooler/key/bias"}, f"no gradient reaches {silent}"  # that one is 0 but for noise
    parts = {
        "scorer": grads["vit"]["scorer"],
        "connector": grads["connector"],
        "llm": grads["llm"],
        "vit": grads["vit"],
    }
    for name, part in parts.items():
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(part)) > 1e-5, name


def test_the_temporal_loss_adds_to_it() -> None:
    run, params, batch = _gradients(PruneConfig()), _params(PruneConfig()), _batch(ROWS)
    plain, with_aux = run(params, batch, 0.0), run(params, batch, 0.5)
    assert with_aux[0] > plain[0]
    for part, moves in (("vit", True), ("llm", False), ("connector", False)):
        pairs = zip(jax.tree.leaves(plain[1][part]), jax.tree.leaves(with_aux[1][part]), strict=True)
        assert any(float(jnp.abs(a - b).max()) > 1e-6 for a, b in pairs) == moves


def test_each_visual_token_gets_the_features_of_its_own_cell() -> None:
    """What the language model starts from: embeddings, and the connector's rows on the <im_patch> of the kept cells."""
    prune, batch = PruneConfig(), _batch(ROWS)
    params, model = _params(prune), _model(prune)
    prefix = jax.jit(lambda p, b: model.apply({"params": p}, b, method="prefix"))(params, batch)
    connector = Connector(CFG.connector, CFG.llm.width)
    visual = np.asarray(jax.jit(connector.apply)({"params": params["connector"]}, prefix.vit.features))
    table = np.concatenate([params["llm"]["embedding"], params["llm"]["new_embedding"]])
    mask = np.asarray(prefix.vit.kept.mask).reshape(len(ROWS), -1)
    for row in range(len(ROWS)):
        rank = np.cumsum(mask[row]) - 1
        cells = batch["cells"][row][batch["example"][row] >= 0]
        alive = (cells < 0) | mask[row][cells]
        want = table[batch["tokens"][row][: len(cells)]]
        want = (want + np.where(cells[:, None] >= 0, visual[row][rank[cells]], 0))[alive]
        np.testing.assert_allclose(prefix.x[row, : len(want)], want, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_keeps_its_budget(method: str) -> None:
    prune = PruneConfig(method=method)
    hidden, rule, loss = _run(prune, _batch(ROWS))
    assert jnp.isfinite(hidden).all() and all(jnp.isfinite(x) for x in (*loss.task, loss.aux))
    frames = [2 + 2, 4, 1 + 3]
    budget = [n_kept(2, "0.5", 4) * 2, n_kept(4, "0.5", 4), n_kept(1, "0.5", 4) + n_kept(3, "0.5", 4)]
    if prune.removed == "0":
        budget = [4 * f for f in frames]
    np.testing.assert_array_equal(loss.kept.sum(axis=(1, 2)), budget)
    unpruned = (_batch(ROWS)["example"] >= 0).sum(axis=1)
    np.testing.assert_array_equal((rule.example >= 0).sum(axis=1), unpruned - 4 * np.asarray(frames) + budget)
    assert (loss.scores is None) == (not prune.has_scorer)
    assert (loss.aux > 0) == prune.has_scorer
    assert (loss.aux_count > 0) == prune.has_scorer


def test_random_selection_follows_its_key() -> None:
    prune = PruneConfig(method="random")
    masks = [np.asarray(_run(prune, _batch(ROWS), seed)[2].kept) for seed in (0, 0, 1)]
    assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()


def test_padding_does_not_matter() -> None:
    """White padding frames, and tokens and targets in padding: bitwise nothing."""
    batch = _batch([[A, Talk(seed=9)]])
    dirty = {name: value.copy() for name, value in batch.items()}
    dirty["frames"][0, 2:] = 255
    empty = dirty["example"][0] < 0
    dirty["tokens"][0, empty], dirty["position"][0, empty], dirty["vision"][0, empty] = 7, 11, True
    want, got = _run(PruneConfig(), batch), _run(PruneConfig(), dirty)
    real = np.asarray(want[1].example[0]) >= 0
    np.testing.assert_array_equal(got[0][0, real], want[0][0, real])
    np.testing.assert_array_equal(got[2].kept, want[2].kept)
    jax.tree.map(np.testing.assert_array_equal, (got[2].task, got[2].aux), (want[2].task, want[2].aux))


def test_image_windows_see_what_video_cells_see() -> None:
    """Unpruned, an image whose pooled windows are the cells of its frames gives the same rows as a video of them."""
    talk = Talk(frames=2, lead=2, branches=(3,), seed=7)
    video = _batch([[A, talk]])
    image = _batch([[A, dataclasses.replace(talk, image=True, windows=8)]])
    grid = CFG.vit.cell_grid
    slots = np.concatenate([frame * grid.patches + grid.slots for frame in (2, 3)])
    image["pooling"] = np.concatenate([slots, np.full((1, 4), -1)])[None].astype(np.int32)  # and one empty window
    # The image has one marker, the video one a frame: give both the video's tokens.
    for name in ("tokens", "targets", "weights", "vision", "segment", "position", "example"):
        image[name] = video[name]
    image["cells"] = np.where(video["cells"] >= 8, TOTAL + video["cells"] - 8, video["cells"])
    np.testing.assert_array_equal(image["frames"], video["frames"])
    prune = PruneConfig(method="none")
    want, got = _run(prune, video)[0], _run(prune, image)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    image["pooling"][0, 3, :] = -1
    assert (np.abs(_run(prune, image)[0] - want).max(axis=-1) > 1e-3).any()


def test_bfloat16_compute_is_near_float32() -> None:
    prune, batch = PruneConfig(), _batch(ROWS)
    low = _model(prune, dtype=jnp.bfloat16)
    hidden, prefix = jax.jit(lambda p, b: low.apply({"params": p}, b))(_params(prune), batch)
    want, rule, loss = _run(prune, batch)
    assert hidden.dtype == jnp.bfloat16 and prefix.vit.logits.dtype == jnp.float32
    np.testing.assert_array_equal(prefix.vit.kept.mask.sum(axis=(1, 2)), loss.kept.sum(axis=(1, 2)))
    real = np.asarray(rule.example >= 0)
    ours, theirs = np.asarray(hidden, np.float32)[real], np.asarray(want)[real]
    assert np.vdot(ours, theirs) > 0.98 * np.linalg.norm(ours) * np.linalg.norm(theirs)


@pytest.mark.slow
def test_bfloat16_gradients_are_near_float32() -> None:
    prune, batch = PruneConfig(), _batch(ROWS)
    low, grads = _gradients(prune, jnp.bfloat16)(_params(prune), batch, 0.5)
    full, want = _gradients(prune)(_params(prune), batch, 0.5)
    assert low.dtype == jnp.float32 and {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(low, full, rtol=0.05)
    ours, theirs = (jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(g["llm"])]) for g in (grads, want))
    assert jnp.vdot(ours, theirs) > 0.9 * jnp.linalg.norm(ours) * jnp.linalg.norm(theirs)


def test_pixels() -> None:
    """uint8 to [-1, 1]; a patch is (row, column, channel), its place row-major inside the cell."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    grid = CellGrid((4, 6), (2, 3))
    got = np.asarray(pixels_to_patches(jnp.asarray(frames), grid, 2))
    assert got.shape == (2, 4, 6, 12) and got.min() >= -1 and got.max() <= 1
    for cell, window in ((0, 0), (1, 4), (3, 5)):
        row, col = 2 * (cell // 2) + window // 3, 3 * (cell % 2) + window % 3
        patch = frames[1, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(-1)
        np.testing.assert_allclose(got[1, cell, window], patch / 127.5 - 1, atol=1e-6)


PROMPTS = [[Talk(frames=3, lead=2, branches=(2,), seed=1)], [Talk(frames=2, lead=4, branches=(1,), seed=2)]]


def _with_answer(batch: dict[str, np.ndarray], answer: np.ndarray) -> dict[str, np.ndarray]:
    """The prompts followed by their answers [B, n], as one row each."""
    batch = {name: value.copy() for name, value in batch.items()}
    for row, tokens in enumerate(answer):
        end = int((batch["example"][row] >= 0).sum())
        own = slice(end, end + len(tokens))
        batch["tokens"][row, own], batch["example"][row, own], batch["segment"][row, own] = tokens, 0, 0
        batch["position"][row, own] = batch["position"][row, end - 1] + 1 + np.arange(len(tokens))
    return batch


@pytest.mark.parametrize(
    ("method", "positions"),
    [
        ("scorer", "dense"),
        *(pytest.param(m, p, marks=pytest.mark.slow) for m, p in (("scorer", "original"), ("none", "dense"))),
    ],
)
def test_prefill_and_decode_continue_as_repeated_full_forward_does(method: str, positions: str) -> None:
    """Prompts of different lengths, pruned inside prefill; greedy, against ever longer rows that are run whole."""
    prune, count = PruneConfig(method=method, positions=positions), 4
    model, params, batch = _model(prune), _params(prune), _batch(PROMPTS)
    prefill = jax.jit(lambda p, b: model.apply({"params": p}, b, LENGTH + count, method="prefill"))
    decode = jax.jit(lambda p, *args: model.apply({"params": p}, *args, method="decode"))
    logits, cache, position, seen = prefill(params, batch)
    answer = np.zeros((2, 0), np.int32)
    for step in range(count):
        hidden, rule, loss = _forward(prune)(params, _with_answer(batch, answer), jax.random.key(0))
        last = np.asarray((rule.example >= 0).sum(axis=1)) - 1
        want = np.stack([hidden[i, end] @ params["llm"]["embedding"].T for i, end in enumerate(last)])
        np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())
        np.testing.assert_array_equal(seen.kept.mask, loss.kept)
        token = np.argmax(want, axis=-1).astype(np.int32)
        answer = np.concatenate([answer, token[:, None]], axis=1)
        logits, cache = decode(params, token, position + step, cache)
    assert len(np.unique(answer)) > 2, "a constant answer proves little"


@pytest.mark.slow
def test_generate_drives_prefill_and_decode() -> None:
    """Greedy tokens and kept cells; the model's own loop, step by step, gives the same."""
    prune, count = PruneConfig(), 3
    model, params, batch = _model(prune), _params(prune), _batch(PROMPTS)
    out = generate(model, {"params": params}, batch, max_new_tokens=count, stop_ids=())
    answer = np.zeros((2, 0), np.int32)
    for _ in range(count):
        hidden, rule, loss = _forward(prune)(params, _with_answer(batch, answer), jax.random.key(0))
        last = np.asarray((rule.example >= 0).sum(axis=1)) - 1
        token = [np.argmax(hidden[i, end] @ params["llm"]["embedding"].T) for i, end in enumerate(last)]
        answer = np.concatenate([answer, np.asarray(token, np.int32)[:, None]], axis=1)
    np.testing.assert_array_equal(out.tokens, answer)
    np.testing.assert_array_equal(out.kept, loss.kept)
    np.testing.assert_allclose(out.scores, loss.scores, atol=1e-6)


def test_compute_dtype_of_the_cache() -> None:
    """Generation in bf16 fills a bf16 cache and gives whole tokens."""
    model = _model(PruneConfig(), dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda p: model.apply(p, _batch(PROMPTS), 44, method="prefill"), {"params": _all_params()})
    logits, cache, position, _ = shapes
    assert cache.k.dtype == jnp.bfloat16 and cache.slots == 44 and logits.dtype == jnp.float32
    assert logits.shape == (2, CFG.llm.vocab) and position.shape == (2,)
