"""Reading a checkpoint: meta, trees, parameters alone, everything. Compares trees before it loads, onto any mesh."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from sttts_jax.ckpt.checksums import add_to_orbax
from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.meta import check_version
from sttts_jax.paths import PathLike, as_path, read_json
from sttts_jax.trees import diff_trees, map_named, named_leaves

PARAMS, OPT, DATA, META = "params", "opt", "data", "meta"


class TreeMismatch(ValueError):
    """The arrays of the checkpoint are not those of this model."""


def context() -> ocp.Context:
    """Orbax settings shared by reads and writes: `meta` is one readable JSON file."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=META)
    result = ocp.Context()
    result.checkpointables.registry = registry
    return result


def saving_context() -> ocp.Context:
    """`context` for writes: arrays get checksums. Raises ValueError where this version of Orbax cannot give them."""
    add_to_orbax()
    return context()


def read_meta(directory: PathLike) -> dict[str, Any]:
    """The `meta` of a step directory, of the newest whole step of a checkpoint directory, or of a run's workdir.

    Raises FileNotFoundError without a checkpoint, ValueError when it is damaged or of another format.
    """
    return read_step_meta(resolve_step(directory))


def read_step_meta(step_path: epath.Path) -> dict[str, Any]:
    """The `meta` of one step directory. Raises as `read_meta`."""
    meta = read_json(step_path / META / "data.json")
    check_version(meta, step_path)
    return meta


def read_tree(step_path: PathLike, name: str) -> Any:
    """Shapes and dtypes of `params` or `opt` in a step directory, without reading any array.

    Named tuples come back as dicts, so compare by leaf names.
    Raises TreeMismatch when there is no such part, ValueError when its files are damaged.
    """
    path = as_path(step_path)
    if not (path / name).exists():
        raise TreeMismatch(f"{path} holds no {name!r}")
    with context():
        tree = ocp.metadata(path, checkpointable_name=name).metadata
    if tree is None:  # Orbax has logged why
        raise ValueError(f"the files of {path / name} are damaged: its tree cannot be read")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def check_tree(step_path: epath.Path, name: str, abstract: Any, cast: bool = False) -> None:
    """Raises TreeMismatch with a table when the saved tree `name` is not `abstract`. cast: dtypes may differ."""
    saved = read_tree(step_path, name)
    if cast:
        abstract, saved = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), (abstract, saved))
    text = diff_trees(abstract, saved)
    if text:
        raise TreeMismatch(f"{step_path}: the saved {name} are not those of this model (expected = the model):\n{text}")


def _placed(abstract: Any) -> Any:
    """Leaves without a sharding go to the first local device; Orbax would ask for the devices that wrote them."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)

    return jax.tree.map(place, abstract)


def load_params(step_path: epath.Path, abstract: Any = None) -> Any:
    """The parameters alone, for evaluation, of a step directory (`ckpt.whole.whole_step` finds it).

    abstract: a tree of jax.ShapeDtypeStruct, with shardings for a mesh, with another float dtype to cast; None: as
    saved. Leaves without a sharding come to the first local device, whatever the devices were that wrote them.
    Raises TreeMismatch with a table of leaf, expected, got.
    """
    if abstract is None:
        abstract = read_tree(step_path, PARAMS)
    else:
        check_tree(step_path, PARAMS, abstract, cast=True)
    with context():
        return ocp.load_checkpointables(step_path, {PARAMS: _placed(abstract)})[PARAMS]


def load_known_params(
    step_path: epath.Path, abstract: Any, may_lack: Sequence[str]
) -> tuple[dict[str, jax.Array], list[str]]:
    """({name: array} of the parameters that a step directory has, names of those that it lacks).

    abstract: as in `load_params`. may_lack: regexes on whole names of leaves that need not be there.
    Raises TreeMismatch with a table when others differ.
    """
    wanted = named_leaves(abstract)
    saved = read_tree(step_path, PARAMS)
    there = named_leaves(saved)
    lacking = [
        name for name in wanted if name not in there and any(re.fullmatch(pattern, name) for pattern in may_lack)
    ]
    check_tree(step_path, PARAMS, {name: leaf for name, leaf in wanted.items() if name not in lacking}, cast=True)
    target = map_named(lambda name, _: wanted[name], saved)  # the tree as saved, the leaves as wanted
    with context():
        loaded = ocp.load_checkpointables(step_path, {PARAMS: _placed(target)})[PARAMS]
    return named_leaves(loaded), lacking


def load_step(step_path: epath.Path, params: Any, opt: Any, data: Any) -> tuple[Any, Any]:
    """(params, opt) of one step directory; the data iterator is set in place (None: not loaded).

    Raises TreeMismatch when the model or optimizer is another one; whatever a damaged file makes Orbax raise.
    """
    for name, abstract in ((PARAMS, params), (OPT, opt)):
        check_tree(step_path, name, abstract)
    wanted = {PARAMS: _placed(params), OPT: _placed(opt)} | ({} if data is None else {DATA: data})
    with context():
        loaded = ocp.load_checkpointables(step_path, wanted)
    return loaded[PARAMS], loaded[OPT]
