"""Our forward pass and transformers' Molmo2 are the same function of the same weights; and `bench torch` end to end."""

import builtins
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.bench.against_torch import PARTS, Case, Ours, _difference, _in_torch_order, measure
from sttts_jax.bench.torch_reference import ATTENTIONS, TorchMolmo2, config_fields, import_torch, share
from sttts_jax.cli import bench
from sttts_jax.convert.piece import tensors_of
from sttts_jax.convert.table import pieces
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig

VIT = VitConfig(
    width=16,
    heads=2,
    head_dim=8,
    mlp=24,
    layers=4,
    patch=2,
    grid=(4, 4),
    cell=(2, 2),
    feature_layers=(3, 1),
    prune_after=0,
)
LLM = LlmConfig(width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=40, vocab=29, extra_vocab=3, rope_theta=1e4)
YARN = YarnConfig(factor=4.0, attention_factor=1.2, beta_fast=8.0, beta_slow=1.0, original_length=16, layers=(1,))
CFG = VlmConfig(VIT, ConnectorConfig(width=16, heads=2, head_dim=8, mlp=40), LLM).check()
MODELS = {
    "qwen": CFG,
    "olmo": dataclasses.replace(CFG, llm=dataclasses.replace(LLM, norm="post", qk_norm="full", tied=False, yarn=YARN)),
    "ragged": dataclasses.replace(CFG, vit=dataclasses.replace(VIT, cell=(3, 3))),
}


def _needs_torch() -> None:
    try:
        torch, _ = import_torch()
    except ValueError as error:
        pytest.skip(str(error))
    torch.set_num_threads(1)  # nothing here is large enough for two, and waiting for one another costs seconds


@functools.cache
def _ours(name: str) -> Ours:
    return Ours(Case(name, MODELS[name], frames=3, text=9))


@functools.cache
def _output(name: str, part: str) -> np.ndarray:
    """Of our side."""
    function, args = _ours(name).parts()[part]
    return _in_torch_order(part, jax.jit(function)(*args), _ours(name).case)


def _tensors(params: Any, cfg: VlmConfig) -> dict[str, np.ndarray]:
    return tensors_of(params, pieces(cfg, "native", scorer=False))


def _theirs(name: str, part: str, params: Any, attention: str = "sdpa") -> Any:
    model = TorchMolmo2(MODELS[name], share(_tensors(params, MODELS[name])), attention)
    return model.call(part, model.inputs(_ours(name).torch_inputs())[part])


@pytest.mark.torch
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("name", "part"), [*(("qwen", part) for part in PARTS), ("olmo", "whole"), ("ragged", "whole")]
)
def test_both_sides_compute_the_same(name: str, part: str, attention: str) -> None:
    _needs_torch()
    want = _theirs(name, part, _ours(name).params, attention)
    assert _difference(_output(name, part), want) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize(
    "path", [("vit", "blocks_00_00", "qkv", "bias"), ("connector", "gate_up"), ("llm", "blocks", "kv")], ids="-".join
)
def test_a_swapped_weight_shows(path: tuple[str, ...]) -> None:
    _needs_torch()
    want = _theirs("qwen", "whole", _turned(_ours("qwen").params, path))
    assert _difference(_output("qwen", "whole"), want) > 1e-4


def _turned(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf with its axis of q, k, v (or k, v; or gate, up) turned round."""
    if path:
        return {**tree, path[0]: _turned(tree[path[0]], path[1:])}
    axis = next(i for i, size in enumerate(tree.shape) if i and size in (2, 3))
    return jnp.flip(tree, axis)


@pytest.mark.torch
def test_every_weight_has_its_place() -> None:
    _needs_torch()
    weights = _tensors(_ours("qwen").params, CFG)
    model = TorchMolmo2(CFG, share(weights), "sdpa").model
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }


def test_what_torch_does_not_have() -> None:
    with pytest.raises(ValueError, match="needs 3 ids"):
        config_fields(dataclasses.replace(CFG, llm=dataclasses.replace(LLM, extra_vocab=2)))
    with pytest.raises(ValueError, match="no place for the parameters vit/scorer/bias"):
        _tensors({"vit": {"scorer": {"bias": np.zeros(3)}}}, CFG)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_missing_packages_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in (missing, "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf'{missing} is missing\): pip install "sttts-jax\[parity\]"'):
        import_torch()


@pytest.mark.torch
def test_rows_say_which_attention_is_best() -> None:
    _needs_torch()
    rows = measure(Case("qwen", CFG, 2, 6), ATTENTIONS, 2, lambda line: None, ("connector", "llm"))
    assert [(row.what, row.attention) for row in rows] == [(p, a) for p in ("connector", "llm") for a in ATTENTIONS]
    for part in ("connector", "llm"):
        assert sum(row.best for row in rows if row.what == part) == 1
    for row in rows:
        assert row.spread[0] <= row.ratio <= row.spread[1] and row.difference < 1e-5 and row.flops_per_s > 0


def _run(*words: str) -> int:
    return bench.main(["torch", *words])


@pytest.mark.torch
def test_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    _needs_torch()
    path = tmp_path / "torch.json"
    words = ["--preset", "tiny", "--frames", "2", "--text", "6", "--rounds", "1", "--attention", "xla"]
    assert _run(*words, "--json", str(path)) == 0
    shown = capsys.readouterr().out
    assert "torch / ours" in shown and "threads" in shown
    record = json.loads(path.read_text())
    assert {"command", "sizes", "threads", "versions", "rounds", "text"} <= set(record)
    assert {"torch", "transformers", "jax"} <= set(record["versions"])
    assert [row["what"] for row in record["rows"]] == [part for part in PARTS for _ in ATTENTIONS]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--what", "head"], "--what head is unknown"),
        (["--torch_attention", "flash"], "--torch_attention flash is unknown"),
        (["--text", "0"], "--text 0 must be at least 1"),
        (["--frames", "1"], "--frames 1 must be a whole number from 2 up"),
        (["--json", "."], "--json . is a directory"),
    ],
)
def test_bad_arguments_are_one_sentence(words: list[str], sentence: str) -> None:
    if words[0] == "--what":
        _needs_torch()
    with pytest.raises(ValueError, match=sentence):
        _run("--preset", "tiny", *words)
