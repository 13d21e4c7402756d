"""The mesh's sizes and errors, and which rows each process loads on real and fake topologies."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from sttts_jax.mesh import AXES, DataLayout, axis_sizes, make_mesh


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
        ({"data": -1, "fsdp": -1}, r"\['data', 'fsdp'\] are all -1"),
        ({"model": 8}, r"\['model'\] are unknown"),
        ({"data": 0}, "not positive"),
        ({}, "needs 1 devices but there are 8"),
    ],
)
def test_bad_sizes_name_the_numbers(axes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        axis_sizes(axes, 8)


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
    with pytest.raises(ValueError, match="6 rows does not divide over data x fsdp = 4"):
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


def test_everything_shared() -> None:
    layout = DataLayout(fake_mesh(2, 4, tensor=8), 1)
    assert (layout.shard_index, layout.shard_count) == (0, 1)
    assert layout.describe() == {"shard_count": 1, "row_shards": 1, "processes": 2}


def test_interleaved_processes_own_disjoint_rows() -> None:
    """Rows of one process need not be neighbours: only whose they are matters."""
    devices = np.array([FakeDevice(i, i % 2) for i in range(4)], dtype=object).reshape(4, 1, 1, 1)
    layouts = [DataLayout(Mesh(devices, AXES), process) for process in range(2)]
    assert [(layout.shard_index, layout.shard_count) for layout in layouts] == [(0, 2), (1, 2)]


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
