"""Tensors of Hugging Face files into an Orbax checkpoint: planned and checked first, then written slice by slice.

plan = plan_molmo2(directory)            # or plan_parts(vision, llm); reads headers, compares everything
write_plan(plan, step_directory, meta)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from sttts_jax.ckpt.restore import PARAMS, TreeMismatch, read_tree
from sttts_jax.ckpt.slices import WHOLE_BYTES, chunk_of, create_leaf, create_step, write_slice
from sttts_jax.convert.fresh import SCORER_LEAVES, fresh_values
from sttts_jax.convert.molmo2_config import vlm_config
from sttts_jax.convert.parts_config import parts_config
from sttts_jax.convert.safetensors_files import TensorFile, list_tensors, numpy_dtype, read_tensor
from sttts_jax.convert.scorer import check_width, find_scorer, holds_scorer, scorer_names
from sttts_jax.convert.table import (
    Piece,
    Style,
    compare,
    ignored_siglip,
    pieces,
    qwen3_pieces,
    scorer_pieces,
    siglip_pieces,
)
from sttts_jax.convert.tied import with_tying
from sttts_jax.convert.tree import leaf_shapes
from sttts_jax.models.config import VlmConfig
from sttts_jax.paths import PathLike, as_path, read_json
from sttts_jax.trees import diff_trees, named_leaves, tree_bytes

DTYPES: dict[str, Any] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FRESH = "fresh"  # in the place of a scorer's file

_BEGINNINGS: dict[str, Style] = {  # the first that some tensor has
    "model.transformer.": "hub",
    "model.vision_backbone.": "hub",
    "model.language_model.": "native",
    "model.vision_tower.": "native",
    "transformer.": "training",
    "vision_backbone.": "training",
}


@dataclass(frozen=True)
class Source:
    """Tensors of files, and the pieces that they are of our tree."""

    pieces: list[Piece]
    listing: Mapping[str, TensorFile]


@dataclass(frozen=True)
class ImportPlan:
    """leaves: names in order, with shape and dtype. fresh: those that no file holds. scorer: whether there is one."""

    cfg: VlmConfig
    sources: list[Source]
    leaves: dict[str, jax.ShapeDtypeStruct]
    fresh: list[str]
    scorer: bool
    seed: int

    @property
    def tensors(self) -> int:
        """Tensors that are read."""
        return len({(id(source), piece.tensor) for source in self.sources for piece in source.pieces})

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return tree_bytes(self.leaves)


def read_config(directory: PathLike) -> dict[str, Any]:
    """config.json of a checkpoint directory. Raises FileNotFoundError, ValueError."""
    file = as_path(directory) / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; give a checkpoint directory as Hugging Face publishes it")
    return read_json(file)


def style_of_names(names: Sequence[str], where: PathLike) -> Style:
    """How the tensors of a Molmo2 checkpoint are named. Raises ValueError for another model's."""
    for beginning, style in _BEGINNINGS.items():
        if any(name.startswith(beginning) for name in names):
            return style
    raise ValueError(f"{where}: no tensor has a name of Molmo2's (the first is {next(iter(names), 'none')!r})")


def plan_molmo2(directory: PathLike, scorer: str = "", dtype: str = "", seed: int = 0) -> ImportPlan:
    """A Molmo2 checkpoint in any of the three spellings.

    scorer: "" takes the one that the directory holds, if any; "fresh"; or a file or directory with one.
    dtype: of all arrays, "" as stored. Raises ValueError (of several kinds) with what does not fit; reads headers,
    config.json, and of a tied head the numbers.
    """
    cfg, listing = vlm_config(read_config(directory)), list_tensors(directory)
    style = style_of_names(list(listing), directory)
    inside = not scorer and holds_scorer(listing)
    if inside:
        check_width(cfg.vit, listing, directory)
    cfg = with_tying(cfg, listing, lambda c: pieces(c, style, inside), style == "training")
    ignored = [] if inside else scorer_names(listing)
    sources = [Source(compare(pieces(cfg, style, inside), listing, ignored), listing)]
    if not inside:
        sources += _scorer(cfg, scorer or directory, needed=bool(scorer))
    return _plan(cfg, sources, scorer == FRESH, dtype, seed)


def plan_parts(vision: PathLike, llm: PathLike, scorer: str = "", dtype: str = "", seed: int = 0) -> ImportPlan:
    """A SigLIP 2 vision tower and a Qwen3 (or Olmo3) language model; connector and added token rows are fresh.

    Arguments, errors as of `plan_molmo2`.
    """
    cfg, vit_listing, llm_listing = (
        parts_config(read_config(vision), read_config(llm)),
        list_tensors(vision),
        list_tensors(llm),
    )
    cfg = with_tying(cfg, llm_listing, lambda c: qwen3_pieces(c.llm, llm_listing))
    tower, text = siglip_pieces(cfg.vit, vit_listing), qwen3_pieces(cfg.llm, llm_listing)
    sources = [
        Source(compare(tower, vit_listing, ignored_siglip(cfg.vit, vit_listing)), vit_listing),
        Source(compare(text, llm_listing), llm_listing),
        *(_scorer(cfg, scorer, needed=True) if scorer else []),
    ]
    return _plan(cfg, sources, scorer == FRESH, dtype, seed)


def _scorer(cfg: VlmConfig, place: PathLike, needed: bool) -> list[Source]:
    if place == FRESH:
        return []
    listing = find_scorer(place, needed)
    if not listing:
        return []
    prefix = check_width(cfg.vit, listing, place)
    return [Source(compare(scorer_pieces(cfg.vit, prefix), listing), listing)]


def _plan(cfg: VlmConfig, sources: list[Source], fresh_scorer: bool, dtype: str, seed: int) -> ImportPlan:
    held = {piece.leaf for source in sources for piece in source.pieces}
    scorer = fresh_scorer or any(name.startswith(SCORER_LEAVES) for name in held)
    shapes = leaf_shapes(pieces(cfg, "hub", scorer))
    dtypes = _dtypes(sources)
    fresh = [name for name in shapes if name not in held]
    leaves = {
        name: jax.ShapeDtypeStruct(shape, DTYPES[dtype] if dtype else dtypes.get(name, dtypes["llm/embedding"]))
        for name, shape in shapes.items()
    }
    return ImportPlan(cfg, sources, leaves, fresh, scorer, seed)


def _dtypes(sources: list[Source]) -> dict[str, np.dtype]:
    """{leaf: dtype of its tensors}. Raises ValueError where they have several."""
    found: dict[str, str] = {}
    for source in sources:
        for piece in source.pieces:
            dtype = source.listing[piece.tensor].dtype
            if found.setdefault(piece.leaf, dtype) != dtype:
                raise ValueError(
                    f"{piece.tensor} is {dtype}, but other layers of the same parameter are {found[piece.leaf]}; "
                    "give --dtype float32 or bfloat16"
                )
    return {leaf: numpy_dtype(dtype) for leaf, dtype in found.items()}


def write_plan(plan: ImportPlan, step_path: PathLike, meta: Mapping[str, Any]) -> None:
    """Writes a step directory with `params` and `meta`. About one tensor and two chunks are in memory at a time."""
    create_step(step_path, plan.leaves, meta)
    for name, parts in _by_leaf(plan.sources).items():
        _write_leaf(step_path, name, plan.leaves[name], parts)
    shapes = {name: spec.shape for name, spec in plan.leaves.items()}
    for name, value in fresh_values(plan.cfg.vit, shapes, plan.fresh, plan.seed):
        spec = plan.leaves[name]
        write_slice(create_leaf(step_path, name, spec.shape, spec.dtype), (), value.astype(spec.dtype))
    problem = diff_trees(plan.leaves, named_leaves(read_tree(step_path, PARAMS)))
    if problem:
        raise TreeMismatch(f"{step_path}: what was written is not what was planned:\n{problem}")


def _by_leaf(sources: list[Source]) -> dict[str, list[tuple[Piece, TensorFile]]]:
    """{leaf: its pieces and where they are}; copies were compared already."""
    groups: dict[str, list[tuple[Piece, TensorFile]]] = {}
    for source in sources:
        for piece in source.pieces:
            if not piece.copy:
                groups.setdefault(piece.leaf, []).append((piece, source.listing[piece.tensor]))
    return groups


def _write_leaf(
    step_path: PathLike, name: str, spec: jax.ShapeDtypeStruct, parts: list[tuple[Piece, TensorFile]]
) -> None:
    units = {axis for piece, _ in parts for axis, entry in enumerate(piece.index) if not isinstance(entry, slice)}
    leaf = create_leaf(step_path, name, spec.shape, spec.dtype, sorted(units))
    if tree_bytes(spec) <= WHOLE_BYTES:
        whole = np.empty(spec.shape, spec.dtype)
        for piece, tensor in parts:
            whole[piece.index] = piece.load(read_tensor(tensor, piece.rows))
        write_slice(leaf, (), whole)
        return
    for piece, tensor in parts:
        if is_table(piece):
            for rows in row_blocks(piece.shape[0], chunk_of(leaf)[0]):
                write_slice(leaf, (rows,), read_tensor(tensor, stored_rows(piece, rows)).astype(spec.dtype, copy=False))
        else:
            array = piece.load(read_tensor(tensor, piece.rows))
            write_slice(leaf, piece.index, array.astype(spec.dtype, copy=False))


def is_table(piece: Piece) -> bool:
    """Whether rows of the leaf are rows of the tensor, so that it goes block by block."""
    return piece.index == () and piece.order == (0, 1) and piece.shape == piece.stored


def row_blocks(rows: int, size: int) -> list[slice]:
    """The rows in blocks of `size`."""
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def stored_rows(piece: Piece, rows: slice) -> slice:
    """Rows of the leaf as rows of the tensor."""
    first = 0 if piece.rows is None else piece.rows.start
    return slice(first + rows.start, first + rows.stop)
