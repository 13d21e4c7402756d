"""A checkpoint of ours as Hugging Face files: planned and checked first, then written tensor by tensor.

plan = plan_export(step_directory, cfg, "native")
write_export(plan, folder)       # model.safetensors or shards and their index, and scorer.safetensors
"""

import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from sttts_jax.ckpt.restore import PARAMS, TreeMismatch, read_tree
from sttts_jax.ckpt.slices import CHUNK_BYTES, fine_leaf, open_leaf, read_slice
from sttts_jax.convert.import_plan import as_dtype, is_table, row_blocks
from sttts_jax.convert.piece import Piece, leaf_shapes, tensor_shapes
from sttts_jax.convert.safetensors_files import (
    SHARD_BYTES,
    TensorSpec,
    dtype_name,
    numpy_dtype,
    write_file,
    write_shards,
)
from sttts_jax.convert.scorer import SCORER_FILE
from sttts_jax.convert.table import Style, pieces, scorer_pieces
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.lora import A, B, factor_index, factor_names, merged_leaf
from sttts_jax.models.vit import SCORER_LEAVES
from sttts_jax.paths import PathLike, as_path
from sttts_jax.trees import diff_trees, named_leaves


@dataclass(frozen=True)
class ExportPlan:
    """The tensors to write, of the model and of a scorer beside it; `pieces` of both. factors: {LoRA leaf: its axes},
    to be merged with the scale `lora`.
    """

    step: Any
    pieces: list[Piece]
    model: list[TensorSpec]
    scorer: list[TensorSpec]
    factors: dict[str, int]
    lora: float

    @property
    def tensors(self) -> int:
        """Tensors that are written."""
        return len(self.model) + len(self.scorer)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(spec.nbytes for spec in (*self.model, *self.scorer))

    @property
    def parameters(self) -> int:
        """Numbers in the model and the scorer; a copied head counts once."""
        return sum(math.prod(piece.shape) for piece in self.pieces if not piece.copy)


def plan_export(step_path: PathLike, cfg: VlmConfig, style: Style, dtype: str | None = None) -> ExportPlan:
    """What a step directory with a model of sizes `cfg` becomes.

    LoRA is merged into its projections. A scorer goes among the other tensors of the "training" style, which has names
    for it, and else into a file of its own. dtype: of all tensors, "float32" or "bfloat16", None as stored.
    Raises TreeMismatch with a table when the step holds another model, ValueError for an unknown dtype.
    """
    step, cast = as_path(step_path), as_dtype(dtype)
    tree = named_leaves(read_tree(step, PARAMS))
    factors = {name: leaf for name, leaf in tree.items() if name.endswith((A, B))}
    saved = {name: leaf for name, leaf in tree.items() if name not in factors}
    scored = any(name.startswith(SCORER_LEAVES) for name in saved)
    model = pieces(cfg, style, scored and style == "training")
    beside = scorer_pieces(cfg.vit) if scored and style != "training" else []
    expected = leaf_shapes([*model, *beside])
    problem = diff_trees(
        {name: np.broadcast_to(np.float32(0), shape) for name, shape in expected.items()},
        {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in saved.items()},
    )
    if problem:
        raise TreeMismatch(f"{step}: the saved params are not those of its config (expected = the config):\n{problem}")
    dtypes = {name: cast or leaf.dtype for name, leaf in saved.items()}
    axes = {name: len(leaf.shape) for name, leaf in factors.items()}
    specs = _specs(model, dtypes), _specs(beside, dtypes)
    return ExportPlan(step, [*model, *beside], *specs, axes, _lora_scale(cfg, factors, saved, step))


def _lora_scale(cfg: VlmConfig, factors: dict[str, Any], saved: dict[str, Any], step: Any) -> float:
    """Raises TreeMismatch for factors that are not whole, or of another rank than the config's."""
    if not factors:
        return 0.0
    whole = {name for leaf in saved for name in factor_names(leaf) if set(factor_names(leaf)) <= set(factors)}
    ranks = {leaf.shape[-1] for name, leaf in factors.items() if name.endswith(A)}
    if cfg.lora is None or whole != set(factors) or ranks != {cfg.lora.rank}:
        raise TreeMismatch(
            f"{step}: the LoRA parameters are not those of its config (rank {sorted(ranks)}); save again"
        )
    return cfg.lora.scale


def _specs(table: list[Piece], dtypes: dict[str, Any]) -> list[TensorSpec]:
    """Tensors in the order of our leaves, so that each leaf is read once from front to back."""
    order = {leaf: place for place, leaf in enumerate(dict.fromkeys(piece.leaf for piece in table))}
    shapes = tensor_shapes(table)
    found: dict[str, TensorSpec] = {}
    for piece in sorted(table, key=lambda piece: order[piece.leaf]):
        dtype = dtype_name(dtypes[piece.leaf])
        spec = found.setdefault(piece.tensor, TensorSpec(piece.tensor, dtype, shapes[piece.tensor]))
        if spec.dtype != dtype:
            raise ValueError(f"parts of {piece.tensor} are {spec.dtype} and {dtype}; give --dtype float32 or bfloat16")
    return list(found.values())


def write_export(plan: ExportPlan, folder: PathLike, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the safetensors files. About one tensor is in memory at a time."""
    root = as_path(folder)
    with tempfile.TemporaryDirectory(dir=root, prefix=".leaves.") as spare:
        reader = _LeafReader(plan, Path(spare))
        write_shards(root, plan.model, reader.read, shard_bytes)
        if plan.scorer:
            write_file(root / SCORER_FILE, plan.scorer, reader.read)


class _LeafReader:
    """Opens every leaf once, and lets go of it after its last piece."""

    def __init__(self, plan: ExportPlan, spare: Path):
        self._step, self._spare = plan.step, spare
        self._factors, self._scale = plan.factors, plan.lora
        self._dtypes = {spec.name: numpy_dtype(spec.dtype) for spec in (*plan.model, *plan.scorer)}
        self._left = Counter(piece.leaf for piece in plan.pieces)
        self._pieces: dict[str, list[Piece]] = {}
        for piece in plan.pieces:
            self._pieces.setdefault(piece.tensor, []).append(piece)
        self._leaves: dict[str, ts.TensorStore] = {}

    def read(self, tensor: str) -> Iterator[np.ndarray]:
        """The tensor's rows from the first to the last, block by block."""
        dtype = self._dtypes[tensor]
        for piece in sorted(self._pieces[tensor], key=lambda piece: piece.rows.start if piece.rows else 0):
            # No name is bound to a block: it would live on while the next one is made.
            yield from map(lambda block: block.astype(dtype, copy=False), self._blocks(piece))
            self._done(piece.leaf)

    def _blocks(self, piece: Piece) -> Iterator[np.ndarray]:
        leaf = self._open(piece.leaf)
        row = math.prod(piece.stored[1:]) * leaf.dtype.numpy_dtype.itemsize
        blocks = row_blocks(0, piece.stored[0], max(CHUNK_BYTES // row, 1))
        if is_table(piece):
            yield from (read_slice(leaf, (rows,)) for rows in blocks)
        else:
            stored = piece.store(self._merged(piece, read_slice(leaf, piece.index)))
            yield from (stored[rows] for rows in blocks)

    def _merged(self, piece: Piece, weight: np.ndarray) -> np.ndarray:
        a, b = factor_names(piece.leaf)
        if a not in self._factors:
            return weight
        indices = factor_index(piece.index, self._factors[a])
        left, right = (read_slice(open_leaf(self._step, n), i) for n, i in zip((a, b), indices, strict=True))
        return merged_leaf(weight, left, right, self._scale)

    def _open(self, name: str) -> ts.TensorStore:
        if name not in self._leaves:
            self._leaves[name] = fine_leaf(open_leaf(self._step, name), name, self._folder(name))
        return self._leaves[name]

    def _folder(self, name: str) -> Path:
        return self._spare / name.replace("/", ".")

    def _done(self, name: str) -> None:
        self._left[name] -= 1
        if not self._left[name]:
            del self._leaves[name]
            shutil.rmtree(self._folder(name), ignore_errors=True)
