"""`sttts-jax convert`: what goes in comes out byte for byte, and is a checkpoint like any other."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sttts_jax.ckpt import slices
from sttts_jax.ckpt.files import problem_of
from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.meta import build_meta, fresh_leaves, saved_config
from sttts_jax.ckpt.restore import load_params, read_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.cli import convert
from sttts_jax.convert import import_plan
from sttts_jax.convert.from_hf import convert_from_hf
from sttts_jax.convert.piece import tensors_of
from sttts_jax.convert.table import STYLES, pieces, qwen3_pieces, scorer_pieces, siglip_pieces
from sttts_jax.convert.to_hf import convert_to_hf
from sttts_jax.data.tokenizer import train_tokenizer
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.mesh import make_mesh
from sttts_jax.models.config import VlmConfig
from sttts_jax.train.config import RunConfig
from sttts_jax.train.state import build_model, init_params
from sttts_jax.trees import map_named, named_leaves, param_count, tree_bytes
from tests.ckpt.damage import flip_a_bit
from tests.convert.hf_dirs import (
    OLMO,
    SMALL,
    TEXTS,
    VOCAB,
    Tensors,
    assert_same,
    convert_in,
    convert_out,
    random_tensors,
    read_hf,
    write_hf,
    write_tensors,
)
from tests.convert.trees import params_of
from tests.models.merged import merge

FILES = [("float32", 10**9), ("bfloat16", 20_000)]


@pytest.fixture(name="piecewise")
def _piecewise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks so small that every leaf above a few numbers goes slice by slice, as those of real models do."""
    for module in (slices, import_plan):
        monkeypatch.setattr(module, "WHOLE_BYTES", 5000)
    monkeypatch.setattr(slices, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(slices, "COARSE_BYTES", 12_000)


KINDS = [(cfg, style, *files) for cfg in (SMALL, OLMO) for style in STYLES for files in FILES]


@pytest.mark.parametrize(("cfg", "style", "dtype", "shard_bytes"), [*KINDS, (SMALL, "hub", "float16", 10**9)])
def test_the_round_trip_is_byte_equal(
    tmp_path: Path, piecewise: None, cfg: VlmConfig, style: Any, dtype: str, shard_bytes: int
) -> None:
    source = tmp_path / "source"
    tensors = write_hf(source, cfg, style=style, dtype=dtype, shard_bytes=shard_bytes)
    assert (source / "model.safetensors.index.json").exists() == (shard_bytes < 10**6)
    convert_in(source, tmp_path / "ours")
    names = ["--names", style] if style == "training" else []  # config.json does not tell this one
    convert_out(tmp_path / "ours", tmp_path / "back", "--shard_gb", shard_bytes / 1e9, *names)
    assert_same(read_hf(tmp_path / "back"), tensors)
    for file in (f for f in source.iterdir() if f.suffix in (".json", ".jinja") and "index" not in f.name):
        if file.name == "config.json":
            assert json.loads(file.read_text()) == json.loads((tmp_path / "back" / file.name).read_text())
        else:
            assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes()


@pytest.mark.parametrize("style", ["hub", "native", "training"])
def test_the_tree_is_the_table_s(tmp_path: Path, piecewise: None, style: Any) -> None:
    """Slice by slice gives the arrays that the whole tensors give; the head of SMALL is found to be tied."""
    tensors = write_hf(tmp_path / "source", style=style)
    convert_in(tmp_path / "source", tmp_path / "ours")
    want = named_leaves(params_of(tensors, pieces(SMALL, style, False)))
    got = named_leaves(load_params(whole_step(tmp_path / "ours")))
    assert "llm/head" not in got
    assert_same({name: np.asarray(leaf) for name, leaf in got.items()}, want)


@pytest.mark.parametrize(("first", "tied"), [(160, True), (161, False), (305, True), (7, False)])
def test_an_embedding_that_is_cut_elsewhere(tmp_path: Path, piecewise: None, first: int, tied: bool) -> None:
    """transformers cuts base and added rows into two halves; the tree is that of files cut as the hub's."""
    tensors = write_hf(tmp_path / "source")
    if not tied:
        tensors["lm_head.weight"][-1, -1] += 1
    want = named_leaves(params_of(tensors, pieces(SMALL if tied else _untied(), "hub", False)))
    base, added = (f"model.transformer.wte.{name}" for name in ("embedding", "new_embedding"))
    rows = np.concatenate([tensors[base], tensors[added]])
    tensors[base], tensors[added] = rows[:first], rows[first:]
    write_tensors(tmp_path / "source", tensors)
    convert_in(tmp_path / "source", tmp_path / "ours")
    got = named_leaves(load_params(whole_step(tmp_path / "ours")))
    assert_same({name: np.asarray(leaf) for name, leaf in got.items()}, want)


def _untied() -> VlmConfig:
    return dataclasses.replace(SMALL, llm=dataclasses.replace(SMALL.llm, tied=False))


def test_rows_that_are_not_those_of_the_config_are_refused(tmp_path: Path) -> None:
    tensors = write_hf(tmp_path / "source")
    tensors["model.transformer.wte.embedding"] = tensors["model.transformer.wte.embedding"][:-1]
    write_tensors(tmp_path / "source", tensors)
    with pytest.raises(ValueError, match=r"wte.embedding.*\[300, 32\].*\[299, 32\]"):
        convert_in(tmp_path / "source", tmp_path / "ours")


def test_a_head_that_only_the_metadata_names_is_tied(tmp_path: Path) -> None:
    tensors = write_hf(tmp_path / "source")
    write_hf(tmp_path / "whole")
    del tensors["lm_head.weight"]
    notes = {"lm_head.weight": "model.transformer.wte.embedding", "format": "pt"}
    safetensors.numpy.save_file(tensors, tmp_path / "source" / "model.safetensors", metadata=notes)
    for name in ("source", "whole"):
        convert_in(tmp_path / name, tmp_path / "ours" / name)
    one, other = (named_leaves(load_params(whole_step(tmp_path / "ours" / name))) for name in ("source", "whole"))
    assert_same({n: np.asarray(x) for n, x in one.items()}, {n: np.asarray(x) for n, x in other.items()})
    assert read_checkpoint(tmp_path / "ours" / "source").vlm.llm.tied


def test_an_untied_head_stays_one(tmp_path: Path) -> None:
    tensors = write_hf(tmp_path / "source")
    tensors["lm_head.weight"][-1, -1] += 1
    write_tensors(tmp_path / "source", tensors)
    convert_in(tmp_path / "source", tmp_path / "ours")
    assert not read_checkpoint(tmp_path / "ours").vlm.llm.tied
    np.testing.assert_array_equal(load_params(whole_step(tmp_path / "ours"))["llm"]["head"], tensors["lm_head.weight"])


def test_dtype_is_cast_on_the_way(tmp_path: Path, piecewise: None) -> None:
    tensors = write_hf(tmp_path / "source")
    convert_in(tmp_path / "source", tmp_path / "half", "--dtype", "bfloat16")
    convert_out(tmp_path / "half", tmp_path / "back", "--dtype", "float32")
    rounded = {n: x.astype(ml_dtypes.bfloat16).astype(np.float32) for n, x in tensors.items()}
    assert_same(read_hf(tmp_path / "back"), rounded)


def test_the_result_is_a_workdir(tmp_path: Path, piecewise: None) -> None:
    """Loaded onto 8 devices as float32 by what evaluation uses, from bfloat16."""
    tensors = write_hf(tmp_path / "source", dtype="bfloat16")
    convert_in(tmp_path / "source", tmp_path / "ours")
    assert problem_of(tmp_path / "ours" / "checkpoints", 0) == ""
    subject = read_checkpoint(tmp_path / "ours")
    assert subject.vlm == SMALL and subject.step == 0 and subject.pruning.method == "none"
    assert subject.tokenizer.base_size == VOCAB
    params = named_leaves(subject.load(make_mesh({"fsdp": 4, "tensor": 2})))
    want = named_leaves(params_of(tensors, pieces(SMALL, "hub", False)))
    assert {leaf.dtype for leaf in params.values()} == {np.dtype(np.float32)}
    assert len(params["llm/blocks/q"].devices()) == 8
    assert_same({n: np.asarray(x) for n, x in params.items()}, {n: x.astype(np.float32) for n, x in want.items()})


@pytest.mark.parametrize("style", ["hub", "native", "training"])
def test_a_scorer_goes_in_and_out(tmp_path: Path, piecewise: None, style: Any) -> None:
    write_hf(tmp_path / "source")
    scorer = random_tensors(scorer_pieces(SMALL.vit))
    (tmp_path / "scorer").mkdir()
    write_tensors(tmp_path / "scorer", scorer)
    convert_in(tmp_path / "source", tmp_path / "ours", "--scorer", tmp_path / "scorer")
    assert read_checkpoint(tmp_path / "ours").pruning.method == "scorer"
    want = named_leaves(params_of(scorer, scorer_pieces(SMALL.vit)))
    assert_same(
        {n: np.asarray(x) for n, x in named_leaves(load_params(whole_step(tmp_path / "ours"))).items() if n in want},
        want,
    )
    convert_out(tmp_path / "ours", tmp_path / "back", "--names", style)
    if style == "training":
        assert set(scorer) <= set(read_hf(tmp_path / "back")) and not (tmp_path / "back/scorer.safetensors").exists()
    else:
        assert_same(read_hf(tmp_path / "back" / "scorer.safetensors"), scorer)
    convert_in(tmp_path / "back", tmp_path / "again")  # found by itself
    first, second = load_params(whole_step(tmp_path / "ours")), load_params(whole_step(tmp_path / "again"))
    assert_same(*({n: np.asarray(x) for n, x in named_leaves(tree).items()} for tree in (second, first)))


def test_a_fresh_scorer_follows_the_seed(tmp_path: Path) -> None:
    write_hf(tmp_path / "source", dtype="bfloat16")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert_in(tmp_path / "source", tmp_path / name, "--scorer", "fresh", "--seed", seed)
    a, b, c = (load_params(whole_step(tmp_path / name))["vit"]["scorer"] for name in "abc")
    np.testing.assert_array_equal(a["fc1"]["kernel"], b["fc1"]["kernel"])
    assert (np.asarray(a["fc1"]["kernel"]) != np.asarray(c["fc1"]["kernel"])).any()
    assert a["fc1"]["kernel"].dtype == ml_dtypes.bfloat16 and not np.asarray(a["fc1"]["bias"]).any()


def _write_parts(root: Path, tied: bool) -> tuple[Tensors, Tensors, VlmConfig]:
    """SigLIP with the blocks, norm and head that Molmo2 leaves behind, and Qwen3."""
    vit = dataclasses.replace(SMALL.vit, layers=7, feature_layers=(6, 0), prune_after=3)
    llm = dataclasses.replace(SMALL.llm, extra_vocab=128, tied=tied)
    tower = random_tensors(siglip_pieces(vit))
    text = {n: x for n, x in random_tensors(qwen3_pieces(llm)).items() if not (tied and n == "lm_head.weight")}
    (root / "vision").mkdir(parents=True)
    (root / "llm").mkdir()
    left = ("vision_model.encoder.layers.8.mlp.fc1.bias", "vision_model.head.probe", "logit_scale")
    write_tensors(root / "vision", tower | {name: np.ones(3, np.float32) for name in left})
    write_tensors(root / "llm", text)
    vision = {
        **{"hidden_size": vit.width, "intermediate_size": vit.mlp, "num_hidden_layers": 9, "num_attention_heads": 2},
        **{"image_size": 84, "patch_size": 14, "model_type": "siglip_vision_model"},
    }
    (root / "vision" / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": vision}))
    qwen = {
        **{"model_type": "qwen3", "hidden_size": llm.width, "intermediate_size": llm.mlp, "vocab_size": llm.vocab},
        **{"num_hidden_layers": llm.layers, "num_attention_heads": llm.heads, "num_key_value_heads": llm.kv_heads},
        **{"head_dim": llm.head_dim, "rope_theta": llm.rope_theta, "tie_word_embeddings": tied},
    }
    (root / "llm" / "config.json").write_text(json.dumps(qwen))
    train_tokenizer(TEXTS, root / "llm", VOCAB)
    return tower, text, dataclasses.replace(SMALL, vit=vit, llm=llm)


@pytest.mark.parametrize("tied", [True, False])
def test_parts_become_a_model_that_goes_out(tmp_path: Path, piecewise: None, tied: bool) -> None:
    tower, text, cfg = _write_parts(tmp_path, tied)
    places = ["--vision", f"hf:{tmp_path / 'vision'}", "--llm", f"hf:{tmp_path / 'llm'}"]
    convert.main([*places, "--to", f"orbax:{tmp_path / 'ours'}", "--scorer", "fresh"])
    assert read_checkpoint(tmp_path / "ours").vlm == cfg
    params = {n: np.asarray(x) for n, x in named_leaves(load_params(whole_step(tmp_path / "ours"))).items()}
    want = named_leaves(params_of(tower, siglip_pieces(cfg.vit)))
    want |= named_leaves(params_of(text, [p for p in qwen3_pieces(cfg.llm) if p.tensor in text]))
    assert_same({name: params[name] for name in want}, want)
    assert 0.018 < params["connector/down"].std() < 0.022 and 0.018 < params["llm/new_embedding"].std() < 0.022
    assert not params["connector/q_bias"].any()
    # Out, and in again: the exported tokenizer has the added tokens.
    convert_out(tmp_path / "ours", tmp_path / "back")
    convert_in(tmp_path / "back", tmp_path / "again")
    assert_same(
        {n: np.asarray(x) for n, x in named_leaves(load_params(whole_step(tmp_path / "again"))).items()}, params
    )


def test_another_tokenizer_can_be_given(tmp_path: Path) -> None:
    """One of the base model, which gets the added tokens."""
    write_hf(tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").unlink()
    train_tokenizer(TEXTS, tmp_path / "plain", VOCAB)
    convert_in(tmp_path / "source", tmp_path / "ours", "--tokenizer", tmp_path / "plain")
    assert read_checkpoint(tmp_path / "ours").tokenizer.ids["<im_patch>"] == VOCAB + 2


def test_a_run_that_started_from_it_goes_out_with_its_side_files(tmp_path: Path) -> None:
    """As training leaves it: another workdir whose config names the converted one."""
    tensors = write_hf(tmp_path / "source", style="native")
    convert_in(tmp_path / "source", tmp_path / "ours")
    shutil.copytree(tmp_path / "ours", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "hf")
    file = tmp_path / "run" / "checkpoints" / "0" / "meta" / "data.json"
    meta = json.loads(file.read_text())
    meta["config"] = json.dumps({**json.loads(meta["config"]), "init_from": str(tmp_path / "ours")})
    file.write_text(json.dumps(meta))
    (tmp_path / "run" / "checkpoints" / "sizes" / "0.json").unlink()
    convert_out(tmp_path / "run", tmp_path / "back")
    assert_same(read_hf(tmp_path / "back"), tensors)
    assert (tmp_path / "back" / "chat_template.jinja").exists()


def test_a_damaged_newest_step_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By `convert`, and by `answer`, `score` and `evaluate`, which read by `read_checkpoint`; slices have checksums."""
    tensors = write_hf(tmp_path / "source")
    convert_in(tmp_path / "source", tmp_path / "ours")
    steps = tmp_path / "ours" / "checkpoints"
    shutil.copytree(steps / "0", steps / "1")
    flip_a_bit(steps / "1")
    convert_out(tmp_path / "ours", tmp_path / "back")
    assert_same(read_hf(tmp_path / "back"), tensors)
    assert read_checkpoint(tmp_path / "ours").params["llm"]["embedding"].shape == (VOCAB, 32)
    said = [line for line in caplog.messages if "step 0 is used in its place" in line]
    assert len(said) == 2
    for line in said:
        assert f"checkpoint step 1 in {steps} is damaged: the file params/d/" in line and "its checksum" in line
    with pytest.raises(ValueError, match=f"{steps}/1 is damaged: the file params/d/"):
        convert_out(steps / "1", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_lora_is_merged_on_the_way_out(tmp_path: Path, piecewise: None) -> None:
    write_hf(tmp_path / "source")
    convert_in(tmp_path / "source", tmp_path / "ours")
    params = jax.tree.map(np.asarray, load_params(whole_step(tmp_path / "ours")))
    config = saved_config(read_meta(tmp_path / "ours"))
    config["model"] |= {"lora_rank": 2, "lora_alpha": 8.0}
    run_config = RunConfig.build(config)
    shape = run_config.data.row_shape
    model = build_model(run_config.model, run_config.pruning, shape)
    boxed = jax.eval_shape(lambda key: init_params(model, shape, key), jax.random.key(0))
    rng, leaves = np.random.default_rng(0), named_leaves(params)
    tuned = map_named(lambda name, leaf: leaves.get(name, rng.standard_normal(leaf.shape, np.float32)), nn.unbox(boxed))
    assert len(named_leaves(tuned)) > len(leaves)
    manager = Manager(tmp_path / "run" / "checkpoints", CheckpointConfig())
    layout = {"shard_count": 1, "row_shards": 1, "processes": 1}
    meta = build_meta(step=3, config=config, data_layout=layout, counters={})
    manager.save(3, jax.tree.map(jax.numpy.asarray, tuned), {"n": jax.numpy.zeros(1)}, None, meta)
    manager.close()
    shutil.copytree(tmp_path / "ours" / "tokenizer", tmp_path / "run" / "tokenizer")
    convert_out(tmp_path / "run", tmp_path / "back")
    assert run_config.vlm.lora is not None
    want = tensors_of(merge(tuned, run_config.vlm.lora), pieces(SMALL, "hub", False))
    got = read_hf(tmp_path / "back")
    assert set(got) == set(want)
    for name, tensor in want.items():
        np.testing.assert_allclose(got[name], tensor, rtol=1e-6, atol=1e-6)
    assert (
        np.abs(
            got["model.transformer.blocks.0.mlp.ff_out.weight"]
            - read_hf(tmp_path / "source")["model.transformer.blocks.0.mlp.ff_out.weight"]
        ).max()
        > 0.1
    )


def test_from_python(tmp_path: Path) -> None:
    """What the command does, called as functions; the result says what happened."""
    tensors = write_hf(tmp_path / "source")
    place = tmp_path / "ours"
    planned = convert_from_hf(tmp_path / "source", place, scorer="fresh", dtype="bfloat16", dry_run=True)
    assert planned.dry_run and not place.exists()
    done = convert_from_hf(tmp_path / "source", place, scorer="fresh", dtype="bfloat16")
    params = load_params(whole_step(place))
    assert done.nbytes == planned.nbytes == tree_bytes(params) and done.parameters == param_count(params)
    assert done.tensors == len(tensors) and done.fresh and all(leaf.startswith("vit/scorer/") for leaf in done.fresh)
    assert fresh_leaves(read_meta(place)) == list(done.fresh) and "the scorer is untrained" in str(done)
    back = convert_to_hf(place, tmp_path / "back", names="native", dtype="float32", shard_gb=1e-5)
    assert back.tensors == len(read_hf(tmp_path / "back")) + len(read_hf(tmp_path / "back" / "scorer.safetensors"))
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 1
    for wrong in ({"source": None}, {"source": place, "llm": place}):
        with pytest.raises(ValueError, match="give either the directory of a whole model, or both"):
            convert_from_hf(target=tmp_path / "x", **wrong)
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; choose one of float32, bfloat16"):
        convert_from_hf(tmp_path / "source", tmp_path / "x", dtype="int8")
    for options in ({"dtype": "int8"}, {"names": "keras"}, {"shard_gb": 0}):
        with pytest.raises(ValueError, match=r"int8|keras|shard_gb 0 must be positive"):
            convert_to_hf(place, tmp_path / "x", **options)


MEMORY = """
import sys
from sttts_jax.cli import convert
from sttts_jax.convert.conversion import peak_bytes
def both(source, folder):
    convert.main(["--from", f"hf:{source}", "--to", f"orbax:{folder}/ours"])
    convert.main(["--from", f"orbax:{folder}/ours", "--to", f"hf:{folder}/back", "--shard_gb", "0.03"])
small, large, folder = sys.argv[1:]
both(small, folder + "/small")
before = peak_bytes()
both(large, folder + "/large")
print(peak_bytes() - before)
"""


def test_memory_does_not_hold_a_leaf(tmp_path: Path) -> None:
    """120 MB of float32 in shards of 30 MB; the largest leaf, of all layers, has 59 MB."""
    llm = dataclasses.replace(SMALL.llm, width=256, heads=8, kv_heads=8, head_dim=32, mlp=1024, layers=28)
    large = dataclasses.replace(SMALL, llm=llm)
    write_hf(tmp_path / "small")
    tensors = write_hf(tmp_path / "large", large, shard_bytes=30_000_000)
    assert sum(x.nbytes for x in tensors.values()) > 115e6
    words = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in ("small", "large", "out"))]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": ""}, check=True)
    assert int(done.stdout.splitlines()[-1]) < 45e6  # a shard and what the allocator keeps; a leaf would not fit
    assert_same(read_hf(tmp_path / "out" / "large" / "back"), tensors)
