"""Where every axis lives: one table from logical axis names to mesh axes, for parameters and activations.

`constrain(x, ...)` is the only way modules ask for an activation layout. Unlike `nn.with_logical_constraint` it never
vanishes without a sound: a name that is not in RULES raises, and under `jax.set_mesh` the constraint is really in the
lowered module.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sttts_jax import dims
from sttts_jax.text_table import text_table
from sttts_jax.trees import named_leaves

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    dims.LAYERS: (),
    dims.EMBED: ("fsdp", "sequence"),
    dims.HEADS: ("tensor",),
    dims.KV_HEADS: ("tensor",),
    dims.HEAD_DIM: (),
    dims.MLP: ("tensor",),
    dims.VOCAB: ("tensor",),
    dims.QKV: (),
    dims.GATE_UP: (),
    dims.PATCH_IN: (),
    dims.POSITION: (),
    dims.SCORER_MLP: ("tensor",),
    dims.LORA: (),
    # activations
    dims.ACT_BATCH: ("data", "fsdp"),
    dims.ACT_LENGTH: ("sequence",),
    dims.ACT_EMBED: (),
    # Where tokens lie over `sequence`, heads do not; inside of attention tokens are whole, and heads take it.
    dims.ACT_HEADS: ("tensor", "sequence"),
    dims.ACT_KV_HEADS: ("tensor", "sequence"),
    dims.ACT_HEAD_DIM: (),
    dims.ACT_MLP: ("tensor",),
    dims.ACT_CHANNELS: ("sequence",),  # of tokens that are gathered from a whole row
}

MIN_SIZE = 2**18  # numbers; smaller leaves are cheaper to copy than to gather


def mesh_axes(
    shape: tuple[int, ...], names: tuple[str | None, ...], sizes: dict[str, int]
) -> tuple[tuple[str, ...] | None, ...]:
    """The mesh axes of each dimension. A mesh axis is used once (the first dimension wins), never at size 1, and only
    where the dimension divides by it; None stands for a dimension that no mesh axis splits.

    Raises ValueError on a name that RULES does not have, or when there are not as many names as dimensions.
    """
    if len(names) != len(shape):
        raise ValueError(
            f"an array of shape {tuple(shape)} got {len(names)} axis names {names}; give one name, or None, a dimension"
        )
    unknown = [name for name in names if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"logical axis names {unknown} are not in sharding.RULES; correct the spelling or add a rule")
    used: set[str] = set()
    chosen: list[tuple[str, ...] | None] = []
    for size, name in zip(shape, names, strict=True):
        axes = _dividing(size, [axis for axis in RULES[name] if axis not in used], sizes) if name else ()
        used.update(axes)
        chosen.append(axes or None)
    return tuple(chosen)


def _dividing(size: int, candidates: list[str], sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes, taken in their order, that together divide `size`."""
    axes: tuple[str, ...] = ()
    for axis in candidates:
        parts = math.prod(sizes[a] for a in axes) * sizes.get(axis, 1)
        if sizes.get(axis, 1) > 1 and size % parts == 0:
            axes += (axis,)
    return axes


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks that x, one logical name (or None: not split) a dimension, lies as RULES says under `jax.set_mesh(mesh)`.

    Identity without a mesh, and for axes that an enclosing `jax.shard_map` already holds. Raises ValueError on an
    unknown name, with or without a mesh.
    """
    sizes = _mesh_sizes()
    axes = mesh_axes(x.shape, names, sizes)
    if not sizes:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def _mesh_sizes() -> dict[str, int]:
    """Axes of the mesh of `jax.set_mesh` that the compiler shards over: none that an enclosing shard_map holds."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {axis: size for axis, size in mesh.shape.items() if types[axis] == AxisType.Auto}


def moved(x: jax.Array, before: tuple[str | None, ...], after: tuple[str | None, ...]) -> jax.Array:
    """x, which lies as the names `before` say, as `after` say: an all-to-all for a mesh axis that changes its place.

    Both layouts are asked for, so that the gradient goes the same way back. Identity where they are one.
    """
    sizes = _mesh_sizes()
    if mesh_axes(x.shape, before, sizes) == mesh_axes(x.shape, after, sizes):
        return x
    return constrain(constrain(x, *before), *after)


def split_axes(shape: tuple[int, ...], *names: str | None) -> tuple[tuple[str, ...] | None, ...]:
    """Mesh axes of each dimension of `shape`, called `names`, under `jax.set_mesh`; None where it is not split."""
    return mesh_axes(shape, names, _mesh_sizes())


def shards(axes: tuple[str, ...] | None) -> int:
    """Into how many parts these mesh axes split a dimension under `jax.set_mesh`."""
    sizes = _mesh_sizes()
    return math.prod(sizes[axis] for axis in axes or ())


def room(size: int, name: str) -> int:
    """The least size from `size` on that all mesh axes of the dimension `name` divide under `jax.set_mesh`."""
    sizes = _mesh_sizes()
    parts = math.prod(sizes.get(axis, 1) for axis in RULES[name])
    return -(-size // parts) * parts


def on_shards(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on every device's own part of its arguments: for kernels, which know no mesh.

    The function itself where nothing is split. Specs as for `jax.shard_map`, made of `split_axes`.
    """
    sizes = _mesh_sizes()
    if math.prod(sizes.values()) == 1:
        return function
    # Kernels do not say which axes their results vary over, so that check cannot be made.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=set(sizes), check_vma=False)


@dataclass(frozen=True)
class LeafPlan:
    """How one leaf lies on the mesh, and the names it asked with."""

    shape: tuple[int, ...]
    dtype: Any
    names: tuple[str | None, ...] | None
    spec: PartitionSpec
    shards: int
    note: str


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _plan_leaf(leaf: Any, sizes: dict[str, int], min_size: int) -> LeafPlan:
    value = nn.meta.unbox(leaf) if _is_box(leaf) else leaf
    shape, names = tuple(value.shape), tuple(leaf.names) if _is_box(leaf) else None
    if names is None:
        return LeafPlan(shape, value.dtype, None, PartitionSpec(), 1, "no axis names" if shape else "")
    axes = mesh_axes(shape, names, sizes)
    if math.prod(shape) < min_size:
        return LeafPlan(shape, value.dtype, names, PartitionSpec(), 1, "small" if any(axes) else "")
    wanted = {axis for name in names if name for axis in RULES[name] if sizes.get(axis, 1) > 1}
    missed = sorted(wanted - {axis for split in axes if split for axis in split})
    shards = math.prod(sizes[axis] for split in axes if split for axis in split)
    return LeafPlan(
        shape,
        value.dtype,
        names,
        PartitionSpec(*axes),
        shards,
        f"not divisible by {', '.join(missed)}" if missed else "",
    )


def shardings_of(tree: Any, mesh: Mesh, min_size: int = MIN_SIZE) -> Any:
    """NamedShardings for a state tree, with the tree's unboxed structure.

    `tree`: the result of `jax.eval_shape` on an init whose parameters carry `nn.with_logical_partitioning` boxes (an
    optimizer state made from boxed parameters has boxed moments). A mesh axis is dropped where the dimension does not
    divide; leaves without names, or with fewer than `min_size` numbers, are copied to every device. Raises ValueError
    on an unknown name.
    """
    sizes = dict(mesh.shape)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _plan_leaf(leaf, sizes, min_size).spec), tree, is_leaf=_is_box)


def abstract_state(tree: Any, mesh: Mesh, min_size: int = MIN_SIZE) -> Any:
    """Unboxed jax.ShapeDtypeStructs with shardings: the target to load a checkpoint onto this mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(tree),
        shardings_of(tree, mesh, min_size),
    )


def state_table(tree: Any, mesh: Mesh, min_size: int = MIN_SIZE) -> str:
    """A printable table of every leaf: shape, names, where it lies, MiB on one device, and why an axis was dropped."""
    sizes = dict(mesh.shape)
    rows, total = [], 0.0
    for name, leaf in named_leaves(tree, is_leaf=_is_box).items():
        plan = _plan_leaf(leaf, sizes, min_size)
        mib = math.prod(plan.shape) * plan.dtype.itemsize / plan.shards / 2**20
        total += mib
        asked = "-" if plan.names is None else ",".join(str(part) for part in plan.names)
        rows.append((name, f"{plan.dtype}{list(plan.shape)}", asked, _spec_text(plan.spec), f"{mib:.2f}", plan.note))
    rows.append(("total on one device", "", "", "", f"{total:.2f}", ""))
    return text_table(("leaf", "array", "names", "split over", "MiB", "note"), rows)


def _spec_text(spec: PartitionSpec) -> str:
    parts = ["+".join((part,) if isinstance(part, str) else part) if part else "." for part in spec]
    return ",".join(parts) if any(part != "." for part in parts) else "copied"
