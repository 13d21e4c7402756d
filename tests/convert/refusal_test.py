"""`sttts-jax convert`: what does not fit stops with a sentence, what is interrupted stops, and no target appears."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sttts_jax.ckpt.restore import TreeMismatch
from sttts_jax.cli import convert
from sttts_jax.cli.main import run
from sttts_jax.convert.export_plan import _lora_scale
from sttts_jax.convert.table import scorer_pieces
from sttts_jax.data.tokenizer import ADDED_TOKENS, train_tokenizer
from sttts_jax.models.lora import LoraConfig, factor_names
from tests.convert.hf_dirs import (
    SMALL,
    TEXTS,
    VOCAB,
    convert_in,
    convert_out,
    random_tensors,
    read_hf,
    write_hf,
    write_tensors,
)


def _lacks_tokens(source: Path) -> None:
    shutil.rmtree(source / "plain", ignore_errors=True)
    train_tokenizer(TEXTS, source / "plain", VOCAB)
    (source / "plain" / "tokenizer.json").rename(source / "tokenizer.json")
    shutil.rmtree(source / "plain")


def _wrong_order(source: Path) -> None:
    text = (source / "tokenizer.json").read_text()
    one, other = (json.dumps(ADDED_TOKENS[i]) for i in (0, 1))
    text = text.replace(one, "@@").replace(other, one).replace("@@", other)
    (source / "tokenizer.json").write_text(text)


def _truncate(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _unmapped(source: Path) -> None:
    write_tensors(source, read_hf(source) | {"model.extra": np.ones(3, np.float32)})


def _missing(source: Path) -> None:
    tensors = read_hf(source)
    del tensors["model.transformer.ln_f.weight"]
    write_tensors(source, tensors)


def _mixed(source: Path) -> None:
    tensors = read_hf(source)
    name = "model.transformer.blocks.1.attn_norm.weight"
    write_tensors(source, tensors | {name: tensors[name].astype(ml_dtypes.bfloat16)})


def _wide_scorer(source: Path) -> None:
    wide = dataclasses.replace(SMALL.vit, width=24)
    tensors = random_tensors(scorer_pieces(wide))
    (source / "x").mkdir()
    write_tensors(source / "x", tensors)
    (source / "x" / "model.safetensors").rename(source / "scorer.safetensors")
    (source / "x").rmdir()


def _other_size(source: Path) -> None:
    text = json.loads((source / "config.json").read_text())["text_config"]
    _edit(source / "config.json", text_config={**text, "intermediate_size": 41})


def _edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


BAD = {
    "tokenizer without added tokens": (_lacks_tokens, "lacks Molmo2's added tokens <im_start>, <im_end>"),
    "added tokens out of order": (_wrong_order, "not in Molmo2's order from id 300 on"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "give --tokenizer DIR"),
    "truncated": (_truncate, "ends early"),
    "unmapped": (_unmapped, "model.extra"),
    "missing": (_missing, "model.transformer.ln_f.weight"),
    "mixed dtypes": (_mixed, "give --dtype float32 or bfloat16"),
    "wide scorer": (_wide_scorer, "made for a vision transformer of width 24, this one has 16"),
    "another model": (lambda d: _edit(d / "config.json", model_type="llava"), "only 'molmo2' is built here"),
    "other sizes": (_other_size, "[82, 32]"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    spoil, words = BAD[case]
    write_hf(tmp_path / "source")
    spoil(tmp_path / "source")
    argv = ["--from", f"hf:{tmp_path / 'source'}", "--to", f"orbax:{tmp_path / 'ours'}"]
    for more in (["--dry_run"], []):
        assert run("convert", convert.main, [*argv, *more]) == 2
        assert words in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--from", "hf:a", "--to", "b"], "--to b must be hf:DIR or orbax:DIR"),
        (["--from", "hf:a", "--to", "hf:b"], "must be orbax:DIR"),
        (["--to", "orbax:b"], "--from must be"),
        (["--vision", "hf:a", "--to", "orbax:b"], "both --vision hf:DIR and --llm hf:DIR"),
        (["--from", "hf:a", "--to", "orbax:b", "--names", "hub"], "--names has no meaning for --to orbax:DIR"),
        (["--from", "orbax:a", "--to", "hf:b", "--seed", "0"], "--seed has no meaning for --to hf:DIR"),
        (["--from", "hf:nowhere", "--to", "orbax:b"], "config.json is missing"),
        (["--from", "orbax:nowhere", "--to", "hf:b"], "holds no whole checkpoint"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convert", convert.main, argv) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_hf(tmp_path / "source")
    convert_in(tmp_path / "source", tmp_path / "ours", "--dry_run")
    assert "everything fits" in capsys.readouterr().out and not (tmp_path / "ours").exists()


def test_an_existing_target_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "source")
    with pytest.raises(ValueError, match="exists already"):
        convert_in(tmp_path / "source", tmp_path / "source")
    convert_in(tmp_path / "source", tmp_path / "ours")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="needs 1.* MB, but its disk has 0.0 MB left"):
        convert_in(tmp_path / "source", tmp_path / "other")
    with pytest.raises(ValueError, match="its disk has 0.0 MB left"):
        convert_out(tmp_path / "ours", tmp_path / "other")
    assert not (tmp_path / "other").exists()


SLOW = """
import sys, time
from sttts_jax.convert import export_plan
from sttts_jax.convert import import_plan
from sttts_jax.cli import convert
def slow(write):
    def call(*args):
        write(*args)
        print("written", flush=True)
        time.sleep(60)
    return call
import_plan.write_slice = slow(import_plan.write_slice)
export_plan.read_slice = slow(export_plan.read_slice)
convert.main(sys.argv[1:])
"""


def test_a_broken_lora_tree_is_refused() -> None:
    """A factor without the other one or without its projection, or of another rank than the config's."""
    lora = LoraConfig(rank=3, alpha=6.0, targets=("llm/blocks/q",))
    cfg = dataclasses.replace(SMALL, lora=lora)
    saved = {"llm/blocks/q": np.zeros((2, 8, 2, 4))}
    a, b = factor_names("llm/blocks/q")
    whole = {a: np.zeros((2, 8, 3)), b: np.zeros((2, 3, 2, 4))}
    assert _lora_scale(cfg, whole, saved, "7") == lora.scale and _lora_scale(cfg, {}, saved, "7") == 0
    broken: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (cfg, {a: whole[a]}, saved),
        (cfg, {b: whole[b]}, saved),
        (cfg, whole, {}),
        (dataclasses.replace(cfg, lora=dataclasses.replace(lora, rank=4)), whole, saved),
        (SMALL, whole, saved),
    ]
    for config, factors, leaves in broken:
        with pytest.raises(TreeMismatch, match="7: the LoRA parameters are not those of its config"):
            _lora_scale(config, factors, leaves, "7")


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_an_interrupted_conversion_leaves_no_target(tmp_path: Path, direction: str, number: signal.Signals) -> None:
    write_hf(tmp_path / "source")
    argv = ["--from", f"hf:{tmp_path / 'source'}", "--to", f"orbax:{tmp_path / 'target'}"]
    if direction == "out":
        convert_in(tmp_path / "source", tmp_path / "ours")
        argv = ["--from", f"orbax:{tmp_path / 'ours'}", "--to", f"hf:{tmp_path / 'target'}"]
    before = {path.name for path in tmp_path.iterdir()}
    child = subprocess.Popen([sys.executable, "-c", SLOW, *argv], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "written\n"
    child.send_signal(number)
    child.wait(timeout=60)
    child.stdout.close()
    assert child.returncode != 0 and not (tmp_path / "target").exists()
    if number != signal.SIGKILL:  # nothing can tidy up after that
        assert {path.name for path in tmp_path.iterdir()} == before
