"""The mesh of devices, and which rows of the global batch this process has to load.

Axes, outermost first: `data` (batch only), `fsdp` (batch and parameters), `tensor` (heads, MLP, vocabulary),
`sequence` (frames and tokens of a row, and parameters). This is the one place that chooses AxisType.Auto:
`jax.make_mesh` alone would give Explicit axes, which Flax Linen cannot trace. Use the mesh through `with
jax.set_mesh(mesh):`; under the older `with mesh:` constraints vanish.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sttts_jax.distributed import check_own

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("data", "fsdp")


def axis_sizes(axes: Mapping[str, int], device_count: int, rows: int | None = None, slices: int = 1) -> dict[str, int]:
    """The size of each of AXES: missing ones are 1, and those at -1 share the devices that are left.

    One open axis takes them all. Where there are several, `data` and `fsdp` get as many as the global batch of `rows`
    divides over (None: all), `data` one a slice if both are open, and one of `tensor` and `sequence` the rest.

    >>> axis_sizes({"data": -1, "fsdp": -1, "sequence": -1}, 256, rows=64)
    {'data': 1, 'fsdp': 64, 'tensor': 1, 'sequence': 4}

    Raises ValueError, with the numbers, for an unknown axis, both `tensor` and `sequence` at -1, or sizes that do not
    multiply to the device count.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} are unknown; use some of {list(AXES)}")
    sizes = {name: int(axes.get(name, 1)) for name in AXES}
    bad = {name: size for name, size in sizes.items() if size < 1 and size != -1}
    if bad:
        raise ValueError(f"mesh axis sizes {bad} are not positive; use 1 or more, or -1 for the rest of the devices")
    free = [name for name, size in sizes.items() if size == -1]
    if {"tensor", "sequence"} <= set(free):
        raise ValueError("mesh axes ['tensor', 'sequence'] are both -1; leave only one of them open")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size not in (1, -1)) or "1"
    if free and device_count % fixed:
        raise ValueError(
            f"the mesh axes {shown} need a multiple of {fixed} devices but there are {device_count}; change them"
        )
    if not free and fixed != device_count:
        raise ValueError(
            f"the mesh {shown} needs {fixed} devices but there are {device_count}; change one axis or set it to -1"
        )
    return sizes | _shares(free, sizes, device_count // fixed, rows, slices)


def _shares(free: Sequence[str], sizes: Mapping[str, int], left: int, rows: int | None, slices: int) -> dict[str, int]:
    """What each of the open axes gets of the devices that are `left`."""
    batch, inner = [name for name in free if name in BATCH_AXES], [name for name in free if name not in BATCH_AXES]
    if len(free) < 2:
        return dict.fromkeys(free, left)
    parts = left
    if inner and rows is not None:
        taken = math.prod(sizes[name] for name in BATCH_AXES if name not in batch)
        step = slices if "data" in batch else 1
        fits = [n for n in range(1, left + 1) if left % n == 0 and n % step == 0 and rows % (n * taken) == 0]
        parts = max(fits, default=left)
    shares = dict.fromkeys(batch, parts)
    if len(batch) == len(BATCH_AXES):
        outer = math.gcd(slices, parts)
        shares = {"data": outer, "fsdp": parts // outer}
    return shares | dict.fromkeys(inner, left // parts)


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None, rows: int | None = None) -> Mesh:
    """A mesh over AXES (all four, always), every axis Auto, all `devices` used (default: every device of the run).

    `axes` and `rows` of a global batch as in `axis_sizes`. An axis may take a part of an axis of the chips' torus. TPU
    slices joined by a data centre network are laid along `data`. Raises ValueError when the sizes do not fit the
    devices or the slices.
    """
    if devices is None:
        devices = jax.devices()
        check_own(devices)
    devices = list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = axis_sizes(axes, len(devices), rows, slices)
    if sizes["data"] % slices:
        raise ValueError(
            f"the mesh axis data={sizes['data']} does not divide over {slices} slices; use a multiple of {slices}, or "
            "-1 for data and for fsdp"
        )
    shape = (sizes["data"] // slices, *(sizes[name] for name in AXES[1:]))
    try:
        if slices == 1:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(
                shape, (slices, 1, 1, 1), devices=devices, allow_split_physical_axes=True
            )
    except NotImplementedError as error:
        raise ValueError(
            f"the mesh {sizes} does not lie on the torus of these {len(devices)} chips ({error}); try other sizes"
        ) from None
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


class DataLayout:
    """Which rows of the global batch a process loads, derived from the mesh.

    Rows are split over `data` x `fsdp`. A process loads the union of the row shards of its own devices, in ascending
    order. Processes that share their row shards (a tensor axis that spans hosts) load the same rows: they have the
    same `shard_index`.

    Example: 2 processes of 4 devices, mesh data=2 tensor=4: shard_count 2. Mesh fsdp=1 tensor=8: shard_count 1, both
    load everything.

    Attributes: `shard_index`, `shard_count`: of the groups of processes that load the same rows; `row_shards`: data x
    fsdp.
    Raises ValueError when processes share some but not all of their row shards.
    """

    def __init__(self, mesh: Mesh, process_index: int | None = None):
        self.mesh = mesh
        process_index = jax.process_index() if process_index is None else process_index
        owned = _owned_row_shards(mesh)
        if process_index not in owned:
            raise ValueError(
                f"process {process_index} has no device in the mesh; build the mesh from the devices of all processes"
            )
        groups = sorted(set(owned.values()))
        self.row_shards = math.prod(mesh.shape[name] for name in BATCH_AXES)
        if sum(map(len, groups)) != self.row_shards or len({len(group) for group in groups}) != 1:
            raise ValueError(
                f"the mesh {dict(mesh.shape)} makes processes share only part of their rows ({owned}); "
                "choose data x fsdp so that each process, or each group of processes, owns whole and equal row shards"
            )
        self.shard_count = len(groups)
        self.shard_index = groups.index(owned[process_index])
        self._own = owned[process_index]

    def rows_per_process(self, global_rows: int) -> int:
        """Rows of one global batch that this process loads. Raises ValueError unless all devices get equally many."""
        if global_rows < 1 or global_rows % self.row_shards:
            raise ValueError(
                f"a global batch of {global_rows} rows does not divide over data x fsdp = {self.row_shards} shards; "
                f"use a multiple of {self.row_shards}, or share rows out: mesh.sequence=-1 (or mesh.tensor=-1) beside "
                "mesh.fsdp=-1 takes the devices that rows do not fill"
            )
        return global_rows // self.shard_count

    def filled(self, rows: int) -> int:
        """The least number of rows from `rows` on that all devices get equally many of."""
        return -(-rows // self.row_shards) * self.row_shards

    def rows(self, global_rows: int) -> list[int]:
        """Numbers of the rows of a global batch that this process loads, ascending. Raises as `rows_per_process`."""
        size = self.rows_per_process(global_rows) // len(self._own)
        return [shard * size + row for shard in self._own for row in range(size)]

    def sharding(self) -> NamedSharding:
        """How a batch array [B, ...] lies on the mesh: rows over data x fsdp, the other axes whole."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    def describe(self) -> dict[str, int]:
        """Plain numbers for the checkpoint, to tell who wrote it."""
        return {
            "shard_count": self.shard_count,
            "row_shards": self.row_shards,
            "processes": len(_owned_row_shards(self.mesh)),
        }


def _owned_row_shards(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """{process: ascending row shards of its devices}."""
    order = [mesh.axis_names.index(name) for name in BATCH_AXES]
    rest = [axis for axis in range(mesh.devices.ndim) if axis not in order]
    grid = np.transpose(mesh.devices, order + rest).reshape(math.prod(mesh.shape[name] for name in BATCH_AXES), -1)
    owned: dict[int, set[int]] = {}
    for row_shard, line in enumerate(grid):
        for device in line:
            owned.setdefault(device.process_index, set()).add(row_shard)
    return {process: tuple(sorted(shards)) for process, shards in sorted(owned.items())}
