"""Our model and transformers' Molmo2 are the same function of the same files: logits, answers and gradients."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
pytest.importorskip("transformers", minversion="5.23", reason="needs the parity extra")

from sttts_jax.convert.piece import tensors_of  # noqa: E402
from sttts_jax.convert.table import pieces  # noqa: E402
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig  # noqa: E402
from tests.convert.hf_dirs import Tensors, assert_same, convert_in, convert_out, read_hf, write_tokenizer  # noqa: E402
from tests.parity.conftest import Check  # noqa: E402
from tests.parity.prompts import Example, Prompt, Writer, make_batch, prompts_of  # noqa: E402
from tests.parity.reference import Ours, Theirs, random_params, write_model  # noqa: E402

pytestmark = pytest.mark.torch
LOGITS, GRADIENTS = 1e-4, 1e-3
ANSWER = 32

# Odd sides, as the 27 x 27 of the released models: 3 x 3 cells of videos divide them, 2 x 2 windows of images do not.
VIT = VitConfig(width=16, heads=2, head_dim=8, mlp=24, layers=4, patch=2, grid=(9, 9), feature_layers=(3, 1))
VIT = dataclasses.replace(VIT, prune_after=0)
LLM = LlmConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, vocab=300, extra_vocab=12, rope_theta=5e6)
QWEN = VlmConfig(VIT, ConnectorConfig(width=16, heads=2, head_dim=8, mlp=48), LLM).check()
YARN = YarnConfig(factor=8.0, attention_factor=1.2, beta_fast=32.0, beta_slow=1.0, original_length=64, layers=(1,))
OLMO_LLM = dataclasses.replace(LLM, kv_heads=4, norm="post", qk_norm="full", tied=False, yarn=YARN, rope_theta=5e5)
MODELS = {
    "qwen, tied": QWEN,
    "qwen, untied, 5 x 5": dataclasses.replace(  # cells are ragged too
        QWEN, vit=dataclasses.replace(VIT, grid=(5, 5)), llm=dataclasses.replace(LLM, tied=False)
    ).check(),
    "olmo, yarn": dataclasses.replace(QWEN, llm=OLMO_LLM).check(),
}


def _rows(cfg: VlmConfig) -> dict[str, list[Example]]:
    """Rows of one example with one branch come first: they are the prompts that are answered."""

    def new(seed: int) -> Writer:
        return Writer(cfg, seed).text(2)

    return {
        "video": [new(0).video(3).text(3).example(6)],
        "image": [new(1).image(2).example(5)],
        "image and video": [new(2).image(1).text(2).video(2).example(6)],
        "text": [new(3).example(9)],
        "packed": [new(4).video(2).example(5), new(5).image(1).example(4), new(6).example(7)],
        "tree": [new(7).video(2).example(4, 6, 3), new(8).image(1).example(4, 5)],
    }


SINGLE = ("video", "image", "image and video", "text")


class Pair:
    """One configuration on both sides, with the same weights."""

    def __init__(self, name: str, folder: Path):
        self.name, self.cfg = name, MODELS[name]
        self.params = random_params(self.cfg)
        self.rows = _rows(self.cfg)
        self.folder = write_model(folder / "native", self.params, self.cfg, "native")
        self.theirs = Theirs(self.folder)
        self.ours = Ours(self.cfg, self.params, make_batch(list(self.rows.values()), self.cfg))

    @functools.cached_property
    def logits(self) -> dict[str, np.ndarray]:
        """Ours, of every row."""
        return dict(zip(self.rows, self.ours.logits(), strict=True))

    def prompts(self, row: str) -> list[Prompt]:
        """What transformers sees of a row, one after the other."""
        return prompts_of(self.rows[row])


@pytest.fixture(name="pair", scope="module", params=list(MODELS))
def _pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("molmo2"))


def test_every_tensor_finds_its_place(pair: Pair) -> None:
    assert not any(pair.theirs.info.values()), pair.theirs.info


@pytest.mark.parametrize("row", list(_rows(QWEN)))
def test_logits(pair: Pair, row: str, check: Check) -> None:
    assert np.abs(pair.logits[row]).mean() > 0.3  # a bound on nothing would be easy to keep
    for prompt in pair.prompts(row):
        check(pair.name, f"logits, {row}", pair.logits[row][prompt.place], pair.theirs.logits(prompt), LOGITS)


def test_the_same_answers(pair: Pair, check: Check) -> None:
    """Greedy, each side from its own cache."""
    prompts = [pair.prompts(row)[0] for row in SINGLE]
    batch = make_batch([pair.rows[row] for row in SINGLE], pair.cfg)
    want = np.stack([pair.theirs.greedy(prompt, ANSWER) for prompt in prompts])
    assert min(len(np.unique(row)) for row in want) > 2  # answers that say something
    got = Ours(pair.cfg, pair.params, batch).greedy(ANSWER)
    check(pair.name, f"answers of {ANSWER} tokens: other tokens", got != want, np.zeros(want.shape), 0)


def test_gradients(pair: Pair, check: Check) -> None:
    """Of every tensor, each against its own largest entry; the rows of ours are packed, trees share their prefix."""
    loss, gradients = pair.ours.loss_and_gradients()
    prompts = [prompt for row in pair.rows for prompt in pair.prompts(row)]
    want_loss, want = pair.theirs.loss_and_gradients(prompts)
    check(pair.name, "loss", loss, want_loss, 1e-5)
    got = _by_tensor(gradients, want, pair.cfg)
    assert set(got) == set(want)
    typical = np.median([np.abs(value).max() for value in want.values()])
    for name in want:
        if name.endswith("k_proj.bias"):  # a softmax does not see them: noise on both sides
            assert max(np.abs(got[name]).max(), np.abs(want[name]).max()) < 1e-5 * typical, name
            continue
        check(pair.name, f"gradients, {_part(name)}", got[name], want[name], GRADIENTS, relative=True)


def _by_tensor(gradients: Any, want: Tensors, cfg: VlmConfig) -> Tensors:
    """Ours under the native names. Files hold a tied head twice, and the gradient of a copy is a part of the whole."""
    table = [piece for piece in pieces(cfg, "native", scorer=False) if not piece.copy]
    got = tensors_of(gradients, table)
    if cfg.llm.tied:
        head, rows = "lm_head.weight", cfg.llm.vocab
        embedding = "model.language_model.embed_tokens.weight"
        want[embedding] = want[embedding].copy()
        want[embedding][:rows] += want.pop(head)
    return got


def _part(name: str) -> str:
    if "vision_tower" in name:
        return "vision tower"
    if "projector" in name:
        return "connector"
    return "language model" if ".layers." in name or "norm" in name else "embeddings and head"


def test_files_of_both_kinds_are_the_same_model(pair: Pair, check: Check, tmp_path: Path) -> None:
    """Written under the released names with the released kind of config.json."""
    theirs = Theirs(write_model(tmp_path / "hub", pair.params, pair.cfg, "hub"))
    assert not any(theirs.info.values()), theirs.info
    for row in ("video", "image"):
        (prompt,) = pair.prompts(row)
        want = pair.theirs.logits(prompt)
        check(pair.name, "hub files against native files", theirs.logits(prompt), want, 0)
        check(pair.name, "logits, from hub files", pair.logits[row][prompt.place], theirs.logits(prompt), LOGITS)


def test_what_convert_writes(pair: Pair, check: Check, tmp_path: Path) -> None:
    """Released names -> a checkpoint of ours -> native names, through the command."""
    hub = write_model(tmp_path / "hub", pair.params, pair.cfg, "hub")
    write_tokenizer(hub, pair.cfg.llm.vocab)
    convert_in(hub, tmp_path / "ours")
    convert_out(tmp_path / "ours", tmp_path / "back", "--names", "native")
    assert_same(read_hf(tmp_path / "back"), read_hf(pair.folder))
    (prompt,) = pair.prompts("image and video")
    logits = Theirs(tmp_path / "back").logits(prompt)
    check(pair.name, "logits, converted there and back", pair.logits["image and video"][prompt.place], logits, LOGITS)


def test_empty_slots_of_windows_matter(pair: Pair) -> None:
    """The comparison has power: an image's empty slots taken for its first patch change the answer by far more."""
    (prompt,) = pair.prompts("image")
    assert (prompt.pooling < 0).any()
    wrong = dataclasses.replace(prompt, pooling=np.maximum(prompt.pooling, 0))
    difference = np.abs(pair.theirs.logits(wrong) - pair.logits["image"][prompt.place]).max()
    assert difference > 100 * LOGITS


def test_which_layers_have_yarn_matters(tmp_path: Path) -> None:
    cfg = MODELS["olmo, yarn"]
    other = dataclasses.replace(cfg, llm=dataclasses.replace(OLMO_LLM, yarn=dataclasses.replace(YARN, layers=(2,))))
    (prompt,) = prompts_of(_rows(cfg)["text"])
    params = random_params(cfg)
    one, two = (
        Theirs(write_model(tmp_path / name, params, c, "native")).logits(prompt)
        for name, c in (("one", cfg), ("two", other))
    )
    assert np.abs(one - two).max() > 100 * LOGITS
