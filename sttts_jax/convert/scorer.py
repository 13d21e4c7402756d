"""Finding a scorer in safetensors files, in the names of the authors of STTS (arXiv 2603.18004)."""

from collections.abc import Iterable, Mapping

from sttts_jax.convert.safetensors_files import StoredTensor, list_tensors
from sttts_jax.models.config import VitConfig
from sttts_jax.paths import PathLike, as_path

SCORER_FILE = "scorer.safetensors"  # beside a model in transformers' names, which have no place for it
KEY = "temporal_token_scorer."
QUERY = "patch_token_pooler.wq.weight"


def scorer_names(names: Iterable[str]) -> list[str]:
    """The tensors among `names` that belong to a scorer."""
    return [name for name in names if KEY in name]


def holds_scorer(names: Iterable[str]) -> bool:
    """Whether a scorer is among the tensors."""
    return bool(scorer_names(names))


def find_scorer(place: PathLike, needed: bool) -> dict[str, StoredTensor]:
    """Tensors of the scorer in a file, in DIR/scorer.safetensors, or in a whole checkpoint DIR.

    Without one: {} unless `needed`, then ValueError. Raises as `list_tensors`.
    """
    root = as_path(place)
    beside = root / SCORER_FILE
    if not needed and not beside.exists():
        return {}
    listing = list_tensors(beside if beside.exists() else root)
    found = {name: listing[name] for name in scorer_names(listing)}
    if not found and QUERY in listing:  # a scorer alone, without a prefix
        return listing
    if not found:
        raise ValueError(f"{place} holds no scorer: no tensor has {KEY!r} in its name")
    return found


def check_width(vit: VitConfig, listing: Mapping[str, StoredTensor], where: PathLike) -> str:
    """The prefix of the scorer's tensors. Raises ValueError for a scorer of another width than the tower."""
    query = next((name for name in listing if name.endswith(QUERY)), None)
    if query is None:
        raise ValueError(f"{where}: the scorer lacks {QUERY}")
    shape = listing[query].shape
    if shape and shape[-1] != vit.width:
        raise ValueError(
            f"{where}: the scorer is made for a vision transformer of width {shape[-1]}, this one has {vit.width}; "
            "give a scorer that was trained with this model, or --scorer fresh"
        )
    return query.removesuffix(QUERY)
