"""The mesh's sizes and errors, and which rows each process loads on real and fake topologies."""

import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from sttts_jax.mesh import AXES, DataLayout, axis_sizes, make_mesh
from tests.aot import run_for_tpu


class FakeDevice:
    """Enough of a device for a Mesh: the process it belongs to."""

    platform = "cpu"

    def __init__(self, number: int, process: int):
        self.id, self.process_index = number, process


def fake_mesh(processes: int, per_process: int, **axes: int) -> Mesh:
    devices = np.array([FakeDevice(i, i // per_process) for i in range(processes * per_process)], dtype=object)
    sizes = axis_sizes(axes, processes * per_process)
    return Mesh(devices.reshape(tuple(sizes.values())), AXES)


def test_open_axis_takes_the_rest() -> None:
    assert axis_sizes({"data": -1, "fsdp": 4}, 8) == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": -1, "fsdp": 3}, "need a multiple of 3 devices but there are 8"),
        ({"data": 2, "fsdp": 2}, "data=2 x fsdp=2 needs 4 devices but there are 8"),
        ({"fsdp": -1, "tensor": -1, "sequence": -1}, r"\['tensor', 'sequence'\] are both -1"),
        ({"data": -1, "fsdp": -1, "tensor": 3}, "tensor=3 need a multiple of 3 devices but there are 8"),
        ({"model": 8}, r"\['model'\] are unknown"),
        ({"data": 0}, "not positive"),
        ({}, "needs 1 devices but there are 8"),
    ],
)
def test_bad_sizes_name_the_numbers(axes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        axis_sizes(axes, 8)


ALL_OPEN = {"data": -1, "fsdp": -1, "sequence": -1}


@pytest.mark.parametrize(
    ("axes", "devices", "rows", "slices", "want"),
    [
        (ALL_OPEN, 8, 64, 1, (1, 8, 1, 1)),
        (ALL_OPEN, 256, 64, 1, (1, 64, 1, 4)),
        (ALL_OPEN, 512, 64, 2, (2, 32, 1, 8)),
        (ALL_OPEN, 24, 64, 1, (1, 8, 1, 3)),
        (ALL_OPEN, 8, None, 1, (1, 8, 1, 1)),
        ({**ALL_OPEN, "tensor": 2}, 256, 64, 1, (1, 64, 2, 2)),
        ({"fsdp": -1, "tensor": -1}, 256, 64, 1, (1, 64, 4, 1)),
        ({"data": 2, "fsdp": -1, "sequence": -1}, 256, 64, 2, (2, 32, 1, 4)),
        ({"data": -1, "fsdp": 16, "sequence": -1}, 256, 64, 2, (4, 16, 1, 4)),
        ({"data": -1, "fsdp": -1}, 256, 64, 4, (4, 64, 1, 1)),
        ({"fsdp": -1}, 256, 64, 1, (1, 256, 1, 1)),
    ],
)
def test_open_axes_share_the_devices(
    axes: dict[str, int], devices: int, rows: int | None, slices: int, want: tuple[int, ...]
) -> None:
    """Rows first, as far as they divide; what they do not fill goes to the axis that shares a row out."""
    assert tuple(axis_sizes(axes, devices, rows, slices).values()) == want


TOPOLOGY = textwrap.dedent(
    """
    from jax.experimental import topologies
    from sttts_jax.mesh import DataLayout, make_mesh

    def check(name, axes, slices=None):
        more = {} if slices is None else {"num_slices": slices}
        devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
        mesh = make_mesh(axes, devices, rows=64)
        assert mesh.devices.size == len(devices)
        layouts = [DataLayout(mesh, process) for process in sorted({d.process_index for d in devices})]
        rows = {layout.rows_per_process(64) * layout.shard_count for layout in layouts}
        slice_of = [{getattr(d, "slice_index", None) for d in part.flat} for part in mesh.devices]
        assert rows == {64} and all(len(found) == 1 for found in slice_of)
        print(name, *mesh.devices.shape)

    every = {"data": -1, "fsdp": -1, "sequence": -1}
    for name in ("v5e:16x16", "v5p:2x2x2", "v5p:2x2x4", "v5p:4x4x4", "v5p:4x4x8", "v6e:16x16", "tpu7x:2x2x4"):
        check(name, every)
    check("v5p:4x4x8", {"fsdp": 64, "tensor": 2})
    check("v6e:16x16", {"fsdp": 64, "tensor": 4})
    check("v6e:4x4", every, slices=4)
    check("v5e:16x16", every, slices=2)
    """
)


@pytest.mark.aot_tpu
def test_meshes_lie_on_real_slices() -> None:
    """One set of axes fills every topology, several slices along `data`, and every host loads equally many rows."""
    assert run_for_tpu(TOPOLOGY, "v5p:2x2x1") == [
        "v5e:16x16 1 64 1 4",
        "v5p:2x2x2 1 8 1 1",
        "v5p:2x2x4 1 16 1 1",
        "v5p:4x4x4 1 64 1 1",
        "v5p:4x4x8 1 64 1 2",
        "v6e:16x16 1 64 1 4",
        "tpu7x:2x2x4 1 32 1 1",
        "v5p:4x4x8 1 64 2 1",
        "v6e:16x16 1 64 4 1",
        "v6e:4x4 4 16 1 1",
        "v5e:16x16 2 32 1 8",
    ]


def test_mesh_is_auto_on_every_axis_and_uses_all_devices() -> None:
    mesh = make_mesh({"data": 2, "fsdp": -1})
    assert mesh.axis_names == AXES and mesh.devices.size == jax.device_count() == 8
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_one_device_mesh() -> None:
    assert dict(make_mesh({"data": -1}, jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)


def test_single_process_loads_everything() -> None:
    layout = DataLayout(make_mesh({"data": 4, "tensor": 2}))
    assert (layout.shard_index, layout.shard_count, layout.row_shards) == (0, 1, 4)
    assert layout.rows_per_process(8) == 8
    assert [layout.filled(rows) for rows in (1, 4, 6)] == [4, 4, 8]
    with pytest.raises(ValueError, match="6 rows does not divide over data x fsdp = 4.*or share rows out: mesh.seq"):
        layout.rows_per_process(6)


def test_data_over_processes() -> None:
    mesh = fake_mesh(4, 4, data=4, fsdp=4)
    layouts = [DataLayout(mesh, process) for process in range(4)]
    assert [layout.shard_index for layout in layouts] == [0, 1, 2, 3]
    assert {layout.rows_per_process(32) for layout in layouts} == {8}


def test_tensor_axis_over_hosts_shares_rows() -> None:
    mesh = fake_mesh(4, 2, data=2, tensor=4)
    layouts = [DataLayout(mesh, process) for process in range(4)]
    assert [(layout.shard_index, layout.shard_count) for layout in layouts] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert {layout.rows_per_process(6) for layout in layouts} == {3}
    assert [layout.rows(6) for layout in layouts] == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2


def test_everything_shared() -> None:
    layout = DataLayout(fake_mesh(2, 4, tensor=8), 1)
    assert (layout.shard_index, layout.shard_count) == (0, 1)
    assert layout.describe() == {"shard_count": 1, "row_shards": 1, "processes": 2}


def test_interleaved_processes_own_disjoint_rows() -> None:
    """Rows of one process need not be neighbours: only whose they are matters."""
    devices = np.array([FakeDevice(i, i % 2) for i in range(4)], dtype=object).reshape(4, 1, 1, 1)
    layouts = [DataLayout(Mesh(devices, AXES), process) for process in range(2)]
    assert [(layout.shard_index, layout.shard_count) for layout in layouts] == [(0, 2), (1, 2)]
    assert [layout.rows(8) for layout in layouts] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_partly_shared_rows_are_refused() -> None:
    devices = np.array([FakeDevice(i, process) for i, process in enumerate([0, 0, 0, 1, 1, 1])], dtype=object)
    with pytest.raises(ValueError, match="share only part of their rows"):
        DataLayout(Mesh(devices.reshape(3, 1, 2, 1), AXES), 0)


def test_unknown_process_is_refused() -> None:
    with pytest.raises(ValueError, match="process 5 has no device"):
        DataLayout(fake_mesh(2, 1, data=2), 5)


def test_layout_agrees_with_jax() -> None:
    """The rows this process may address under the batch sharding are the rows it loads."""
    layout = DataLayout(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    rows = np.arange(8.0).reshape(8, 1)
    array = jax.make_array_from_process_local_data(layout.sharding(), rows, global_shape=(8, 1))
    assert array.addressable_shards[0].data.shape == (2, 1)
    np.testing.assert_array_equal(array, rows)
