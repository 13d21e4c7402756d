"""Tiny random checkpoints laid out as Hugging Face publishes Molmo2: config.json, safetensors, tokenizer, side files.

    tensors = write_hf(tmp_path / "hub")                                  # {name: array} that it wrote
    write_hf(tmp_path / "native", OLMO, style="native", dtype="bfloat16", shard_bytes=50_000)
    convert_in(tmp_path / "hub", tmp_path / "ours")                       # what every command reads

`convert --from hf:DIR` reads SMALL and OLMO back as they are here; SMALL's head is tied.
"""

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sttts_jax.cli import convert
from sttts_jax.convert.molmo2_config import hf_config
from sttts_jax.convert.piece import Piece, tensor_shapes
from sttts_jax.convert.safetensors_files import (
    SHARD_BYTES,
    TensorSpec,
    dtype_name,
    list_tensors,
    read_tensor,
    write_shards,
)
from sttts_jax.convert.table import Style, pieces
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
VOCAB = 300
Tensors = dict[str, np.ndarray]
TEXTS = ("What happens in the video?\nuser\nassistant\nA ball rolls. A: yes B: no C: 12",)

# Qwen3's kind, 84 px frames of 6 x 6 patches and 2 x 2 cells.
SMALL = VlmConfig(
    VitConfig(
        width=16, heads=2, head_dim=8, mlp=24, layers=4, patch=14, grid=(6, 6), feature_layers=(3, 1), prune_after=2
    ),
    ConnectorConfig(width=16, heads=2, head_dim=8, mlp=40),
    LlmConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=40, vocab=VOCAB, extra_vocab=20),
).check()

# Olmo3's kind: norms behind the sublayers, norms of all heads together, YaRN on some blocks, a head of its own.
OLMO = dataclasses.replace(
    SMALL,
    llm=dataclasses.replace(
        SMALL.llm,
        norm="post",
        qk_norm="full",
        yarn=YarnConfig(8.0, 1.2, 32.0, 1.0, 64, (1,)),
        tied=False,
    ),
).check()


def write_hf(
    directory: Path,
    cfg: VlmConfig = SMALL,
    *,
    style: Style = "hub",
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    scorer: bool = False,
    seed: int = 0,
) -> Tensors:
    """A whole checkpoint directory; the tensors in it. The head of a tied config is a copy of the embedding."""
    directory.mkdir(parents=True, exist_ok=True)
    table = pieces(cfg, style, scorer)
    tensors = random_tensors(table, dtype, seed)
    write_tensors(directory, tensors, shard_bytes)
    config = hf_config(cfg, "native" if style == "native" else "hub")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7}))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    write_tokenizer(directory, cfg.llm.vocab)
    return tensors


def random_tensors(table: Iterable[Piece], dtype: str = "float32", seed: int = 0) -> Tensors:
    """Numbers such as a model has: matrices of variance 1 / columns, vectors near 1."""
    table, rng = list(table), np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(table).items():
        values = rng.standard_normal(shape, np.float32)
        values = values / math.sqrt(shape[-1]) if len(shape) > 1 else 1 + 0.1 * values
        tensors[name] = values.astype(DTYPES[dtype])
    for piece in table:
        if piece.copy:
            original = next(x.tensor for x in table if x.leaf == piece.leaf and not x.copy)
            tensors[piece.tensor] = tensors[original][: piece.shape[0]].copy()
    return tensors


def write_tensors(directory: Path, tensors: Tensors, shard_bytes: int = SHARD_BYTES) -> None:
    """model.safetensors, or shards and their index."""
    specs = [TensorSpec(name, dtype_name(array.dtype), array.shape) for name, array in tensors.items()]
    write_shards(directory, specs, lambda name: [tensors[name]], shard_bytes)


def write_tokenizer(directory: Path, base_size: int = VOCAB) -> Tokenizer:
    """tokenizer.json and tokenizer_config.json with Molmo2's added tokens in their places."""
    for name, content in _tokenizer_files(base_size).items():
        (directory / name).write_text(content)
    return Tokenizer.load(directory, base_size)


@functools.cache
def _tokenizer_files(base_size: int) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        plain, full = Path(folder) / "plain", Path(folder) / "full"
        train_tokenizer(TEXTS, plain, base_size).save_hf(full)
        return {file.name: file.read_text() for file in sorted(full.iterdir())}


def convert_in(source: Path, target: Path, *more: Any) -> None:
    """`sttts-jax convert --from hf:source --to orbax:target`."""
    convert.main(["--from", f"hf:{source}", "--to", f"orbax:{target}", *map(str, more)])


def convert_out(source: Path, target: Path, *more: Any) -> None:
    """`sttts-jax convert --from orbax:source --to hf:target`."""
    convert.main(["--from", f"orbax:{source}", "--to", f"hf:{target}", *map(str, more)])


def read_hf(place: Path) -> Tensors:
    """The tensors of a directory or a file."""
    return {name: read_tensor(tensor) for name, tensor in list_tensors(place).items()}


def assert_same(got: Tensors, want: Tensors) -> None:
    """The same names, dtypes and bytes."""
    assert set(got) == set(want)
    wrong = [n for n in want if got[n].dtype != want[n].dtype or got[n].tobytes() != want[n].tobytes()]
    assert not wrong
