"""What transformers itself saves converts: each tensor of its model is the one that our tree gives back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from sttts_jax.ckpt.restore import load_params
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.convert.from_hf import convert_from_hf
from sttts_jax.convert.piece import tensors_of
from sttts_jax.convert.safetensors_files import list_tensors
from sttts_jax.convert.table import pieces
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.models.config import VlmConfig
from tests.convert.hf_dirs import OLMO, SMALL, write_hf, write_tokenizer

pytestmark = pytest.mark.torch

SAVED: dict[str, dict[str, Any]] = {
    "default": {},
    "own names": {"save_original_format": False},
    "shards": {"max_shard_size": "20KB"},
}


def _model(folder: Path, fresh: bool, dtype: str) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    auto, kind = transformers.AutoModelForImageTextToText, getattr(torch, dtype)
    if fresh:
        torch.manual_seed(0)
        return auto.from_config(transformers.AutoConfig.from_pretrained(folder)).to(kind)
    return auto.from_pretrained(folder, dtype=kind)


@pytest.mark.parametrize(
    ("kind", "cfg", "source", "dtype"),
    [
        ("default", SMALL, "", "float32"),
        ("own names", OLMO, "", "bfloat16"),
        ("default", OLMO, "hub", "float32"),
        ("own names", SMALL, "hub", "bfloat16"),
        ("shards", SMALL, "hub", "bfloat16"),
        ("shards", OLMO, "native", "bfloat16"),
    ],
)
def test_save_pretrained_converts(tmp_path: Path, kind: str, cfg: VlmConfig, source: Any, dtype: str) -> None:
    """`source`: what the model was loaded from before it was saved, '' for one that begins afresh."""
    write_hf(tmp_path / "source", cfg, style=source or "native")
    model = _model(tmp_path / "source", not source, dtype)
    model.save_pretrained(tmp_path / "saved", **SAVED[kind])
    write_tokenizer(tmp_path / "saved", cfg.llm.vocab)
    assert ("index" in " ".join(file.name for file in (tmp_path / "saved").iterdir())) == (kind == "shards")
    convert_from_hf(tmp_path / "saved", tmp_path / "ours")
    ours = jax.tree.map(np.asarray, load_params(whole_step(tmp_path / "ours")))
    table = pieces(read_checkpoint(tmp_path / "ours").vlm, "native", False)
    want = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    got = {name: tensor.astype(np.float32) for name, tensor in tensors_of(ours, table).items()}
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def test_it_cuts_the_embedding_into_halves(tmp_path: Path) -> None:
    """What makes `convert.text.first_rows` necessary; when this fails, transformers saves what was released."""
    write_hf(tmp_path / "source")
    _model(tmp_path / "source", False, "float32").save_pretrained(tmp_path / "saved")
    listing = list_tensors(tmp_path / "saved")
    rows = [listing[f"model.transformer.wte.{name}"].shape[0] for name in ("embedding", "new_embedding")]
    assert rows == [160, 160]
