"""Tensors of Hugging Face files into an Orbax checkpoint: planned and checked first, then written slice by slice.

plan = plan_molmo2(directory)            # or plan_backbones(vision, llm); reads headers, compares everything
write_plan(plan, step_directory, meta)
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sttts_jax.ckpt.restore import PARAMS, TreeMismatch, read_tree
from sttts_jax.ckpt.slices import WHOLE_BYTES, chunk_of, create_leaf, create_step, write_slice
from sttts_jax.convert.backbone_config import vlm_of_backbones
from sttts_jax.convert.fresh_params import fresh_params
from sttts_jax.convert.molmo2_config import vlm_config
from sttts_jax.convert.piece import Piece, compare, leaf_shapes
from sttts_jax.convert.safetensors_files import StoredTensor, list_tensors, numpy_dtype, read_tensor
from sttts_jax.convert.scorer import check_width, find_scorer, holds_scorer, scorer_names
from sttts_jax.convert.table import (
    Style,
    first_rows,
    ignored_siglip,
    pieces,
    qwen3_pieces,
    scorer_pieces,
    siglip_pieces,
)
from sttts_jax.convert.tied import with_tying
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.vit import SCORER_LEAVES
from sttts_jax.paths import PathLike, as_path, read_json
from sttts_jax.train.config import DTYPES
from sttts_jax.trees import diff_trees, named_leaves, param_count, tree_bytes

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
class MappedFiles:
    """The tensors of one checkpoint, and the pieces that they are of our tree."""

    pieces: list[Piece]
    listing: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class ImportPlan:
    """leaves: names in order, with shape and dtype. fresh: those that no file holds. scorer: whether there is one."""

    cfg: VlmConfig
    files: list[MappedFiles]
    leaves: dict[str, jax.ShapeDtypeStruct]
    fresh: list[str]
    scorer: bool
    seed: int

    @property
    def tensors(self) -> int:
        """Tensors that are read."""
        return len({(id(files), piece.tensor) for files in self.files for piece in files.pieces})

    @property
    def parameters(self) -> int:
        """Numbers in the arrays."""
        return param_count(self.leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return tree_bytes(self.leaves)


def as_dtype(name: str | None) -> np.dtype | None:
    """The names float32 and bfloat16 as numpy's; None for None. Raises ValueError for any other."""
    if name is None:
        return None
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return np.dtype(DTYPES[name])


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


def plan_molmo2(
    directory: PathLike, scorer: PathLike | None = None, dtype: str | None = None, seed: int = 0
) -> ImportPlan:
    """A Molmo2 checkpoint in any of the three spellings.

    scorer: None takes the one that the directory holds, if any; "fresh"; or a file or directory with one.
    dtype: of all arrays, "float32" or "bfloat16", None as stored. Raises ValueError (of several kinds) with what does
    not fit; reads headers, config.json, and of a tied head the numbers.
    """
    cfg, listing = vlm_config(read_config(directory)), list_tensors(directory)
    style = style_of_names(list(listing), directory)
    inside = scorer is None and holds_scorer(listing)
    if inside:
        check_width(cfg.vit, listing, directory)
    cut = first_rows(cfg, style, listing)
    cfg = with_tying(cfg, listing, lambda c: pieces(c, style, inside, cut), style == "training")
    ignored = [] if inside else scorer_names(listing)
    files = [MappedFiles(compare(pieces(cfg, style, inside, cut), listing, ignored), listing)]
    if not inside:
        files += _scorer(cfg, directory if scorer is None else scorer, needed=scorer is not None)
    return _plan(cfg, files, scorer == FRESH, dtype, seed)


def plan_backbones(
    vision: PathLike, llm: PathLike, scorer: PathLike | None = None, dtype: str | None = None, seed: int = 0
) -> ImportPlan:
    """A SigLIP 2 vision tower and a Qwen3 (or Olmo3) language model; connector and added token rows are fresh.

    Arguments, errors as of `plan_molmo2`.
    """
    cfg = vlm_of_backbones(read_config(vision), read_config(llm))
    vit_listing, llm_listing = list_tensors(vision), list_tensors(llm)
    cfg = with_tying(cfg, llm_listing, lambda c: qwen3_pieces(c.llm, llm_listing))
    tower, text = siglip_pieces(cfg.vit, vit_listing), qwen3_pieces(cfg.llm, llm_listing)
    files = [
        MappedFiles(compare(tower, vit_listing, ignored_siglip(cfg.vit, vit_listing)), vit_listing),
        MappedFiles(compare(text, llm_listing), llm_listing),
        *([] if scorer is None else _scorer(cfg, scorer, needed=True)),
    ]
    return _plan(cfg, files, scorer == FRESH, dtype, seed)


def _scorer(cfg: VlmConfig, place: PathLike, needed: bool) -> list[MappedFiles]:
    if place == FRESH:
        return []
    listing = find_scorer(place, needed)
    if not listing:
        return []
    prefix = check_width(cfg.vit, listing, place)
    return [MappedFiles(compare(scorer_pieces(cfg.vit, prefix), listing), listing)]


def _plan(cfg: VlmConfig, files: list[MappedFiles], fresh_scorer: bool, dtype: str | None, seed: int) -> ImportPlan:
    cast = as_dtype(dtype)
    held = {piece.leaf for source in files for piece in source.pieces}
    scorer = fresh_scorer or any(name.startswith(SCORER_LEAVES) for name in held)
    shapes = leaf_shapes(pieces(cfg, "hub", scorer))
    dtypes = _dtypes(files)
    fresh = [name for name in shapes if name not in held]
    leaves = {
        name: jax.ShapeDtypeStruct(shape, cast or dtypes.get(name, dtypes["llm/embedding"]))
        for name, shape in shapes.items()
    }
    return ImportPlan(cfg, files, leaves, fresh, scorer, seed)


def _dtypes(files: list[MappedFiles]) -> dict[str, np.dtype]:
    """{leaf: dtype of its tensors}. Raises ValueError where they have several."""
    found: dict[str, str] = {}
    for piece, tensor in _stored_pieces(files):
        if found.setdefault(piece.leaf, tensor.dtype) != tensor.dtype:
            raise ValueError(
                f"{piece.tensor} is {tensor.dtype}, but other layers of the same parameter are {found[piece.leaf]}; "
                "give --dtype float32 or bfloat16"
            )
    return {leaf: numpy_dtype(dtype) for leaf, dtype in found.items()}


def write_plan(plan: ImportPlan, step_path: PathLike, meta: Mapping[str, Any]) -> None:
    """Writes a step directory with `params` and `meta`. About one tensor and two chunks are in memory at a time."""
    create_step(step_path, plan.leaves, meta)
    for name, parts in _by_leaf(plan.files).items():
        _write_leaf(step_path, name, plan.leaves[name], parts)
    shapes = {name: spec.shape for name, spec in plan.leaves.items()}
    for name, value in fresh_params(plan.cfg.vit, shapes, plan.fresh, plan.seed):
        spec = plan.leaves[name]
        write_slice(create_leaf(step_path, name, spec.shape, spec.dtype), (), value.astype(spec.dtype))
    problem = diff_trees(plan.leaves, named_leaves(read_tree(step_path, PARAMS)))
    if problem:
        raise TreeMismatch(f"{step_path}: what was written is not what was planned:\n{problem}")


def _by_leaf(files: list[MappedFiles]) -> dict[str, list[tuple[Piece, StoredTensor]]]:
    """{leaf: its pieces and where they are}; copies were compared already."""
    groups: dict[str, list[tuple[Piece, StoredTensor]]] = {}
    for piece, tensor in _stored_pieces(files):
        if not piece.copy:
            groups.setdefault(piece.leaf, []).append((piece, tensor))
    return groups


def _stored_pieces(files: list[MappedFiles]) -> Iterator[tuple[Piece, StoredTensor]]:
    """Every piece and where it is."""
    for source in files:
        yield from ((piece, source.listing[piece.tensor]) for piece in source.pieces)


def _write_leaf(
    step_path: PathLike, name: str, spec: jax.ShapeDtypeStruct, parts: list[tuple[Piece, StoredTensor]]
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
        for index, array in _parts_of(piece, tensor, chunk_of(leaf)[0]):
            write_slice(leaf, index, array.astype(spec.dtype, copy=False))


def _parts_of(piece: Piece, tensor: StoredTensor, rows: int) -> Iterator[tuple[tuple, np.ndarray]]:
    """(index in the leaf, array): of a table blocks that end where chunks of `rows` rows do, else the whole piece."""
    if not is_table(piece):
        yield piece.index, piece.load(read_tensor(tensor, piece.rows))
        return
    first = piece.index[0].start if piece.index else 0
    stored = (0 if piece.rows is None else piece.rows.start) - first
    for block in row_blocks(first, first + piece.shape[0], rows):
        yield (block,), read_tensor(tensor, slice(stored + block.start, stored + block.stop))


def is_table(piece: Piece) -> bool:
    """Whether rows of the leaf are rows of the tensor, so that it goes block by block."""
    by_rows = piece.index == () or (len(piece.index) == 1 and isinstance(piece.index[0], slice))
    return by_rows and piece.order == (0, 1) and piece.shape == piece.stored


def row_blocks(first: int, end: int, size: int) -> list[slice]:
    """The rows from `first` on, cut at multiples of `size`."""
    cuts = [first, *range((first // size + 1) * size, end, size), end]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts) if start < stop]
