"""One of several processes of 4 CPU devices each; tests/multiprocess/processes_test.py starts them.

Arguments: process, processes, port, directory. Ends with exit code 0 when everything it asserts holds.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.compile_cache import use_compile_cache
from sttts_jax.distributed import everywhere, gather_json, joined, to_host
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.together import together
from sttts_jax.sharding import NamedSharding, PartitionSpec

NUMBERS = np.random.default_rng(0).standard_normal(2**14).astype(np.float32)  # too many to lie in an index


def rows_come_from_the_mesh() -> None:
    """Whatever the mesh, the global batch is the same rows; a tensor axis over both processes makes both load all."""
    whole = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    cases = (({"data": 8}, 2), ({"data": 2, "tensor": 4}, 2), ({"fsdp": 4, "tensor": 2}, 2), ({"tensor": 8}, 1))
    for axes, shards in cases:
        layout = DataLayout(make_mesh(axes))
        assert layout.shard_count == shards, (axes, layout.shard_count)
        count = layout.rows_per_process(8)
        mine = whole[layout.shard_index * count :][:count]
        batch = jax.make_array_from_process_local_data(layout.sharding(), mine, global_shape=whole.shape)
        total = jax.jit(lambda x: (x * jnp.arange(8.0)[:, None]).sum())(batch)
        assert float(total) == float((whole * np.arange(8.0)[:, None]).sum()), axes
        for shard in batch.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])


def they_tell_each_other(process: int) -> None:
    """Values of other lengths on every process, in the order of processes; arrays whole; a single no is no.

    Each compiles for itself.
    """
    told = gather_json({"process": process, "words": ["so"] * (1 + 5 * process)})
    assert told == [{"process": 0, "words": ["so"]}, {"process": 1, "words": ["so"] * 6}]
    assert use_compile_cache() == ""
    assert everywhere(True) and not everywhere(process == 0)
    mesh = make_mesh({"data": 8})
    rows = jax.make_array_from_process_local_data(DataLayout(mesh).sharding(), np.full(4, process), global_shape=(8,))
    assert to_host(rows).tolist() == [0] * 4 + [1] * 4


def they_stop_at_one_point(process: int) -> None:
    """Process 1 is told to stop while it is three points ahead of the other, which then goes as far."""
    group = together()
    assert group is not None
    for point in range(4 if process else 1):
        assert group.passes(point)
    sync_global_devices("passed")
    if process:
        group.ask_to_stop()
    until = time.monotonic() + 20
    while not group.stops_at(4) and time.monotonic() < until:
        time.sleep(0.05)
    assert all(group.passes(point) for point in (1, 2, 3)) and not group.stops_at(3) and not group.passes(4)


def _state(mesh: jax.sharding.Mesh, value: float) -> Any:
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    make = jax.jit(lambda: NUMBERS * value, out_shardings=split)
    return {"w": make()}, {"m": make()}


def _flip_a_bit(folder: Path) -> None:
    """In the array data that process 1 wrote, so that process 1 alone would read it."""
    file = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _meta(layout: DataLayout, step: int) -> dict[str, Any]:
    return build_meta(step=step, config={"a": 1}, data_layout=layout.describe(), counters={})


def saves_and_falls_back(process: int, directory: str) -> None:
    """Both processes write one checkpoint; after damage both go back to the same step, also on another mesh."""
    mesh = make_mesh({"fsdp": 8})
    layout = DataLayout(mesh)
    manager = Manager(directory, CheckpointConfig(every=1))
    for step in (1, 2):
        manager.save(step, *_state(mesh, step), None, _meta(layout, step))
    manager.close()
    sync_global_devices("saved")
    if process == 0:
        _flip_a_bit(Path(directory) / "2" / "params" / "ocdbt.process_1" / "d")
    sync_global_devices("damaged")
    other = make_mesh({"data": 2, "fsdp": 4})
    split = NamedSharding(other, PartitionSpec("fsdp"))
    target = jax.ShapeDtypeStruct((len(NUMBERS),), jnp.float32, sharding=split)
    manager = Manager(directory, CheckpointConfig(every=1))
    layout = DataLayout(other)
    found = manager.restore_latest({"w": target}, {"m": target}, None, config={"a": 1})
    assert found is not None and found.step == 1 and manager.steps == [1]
    for shard in found.params["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, NUMBERS[shard.index])
    manager.save(2, found.params, found.opt, None, _meta(layout, 2))
    manager.close()
    assert manager.steps == [1, 2]


def main() -> None:
    port, directory = sys.argv[3], sys.argv[4]
    process, processes = int(sys.argv[1]), int(sys.argv[2])
    with joined(DistributedConfig(processes, f"127.0.0.1:{port}", process, timeout_s=60)):
        assert jax.process_count() == processes and jax.device_count() == 4 * processes
        rows_come_from_the_mesh()
        they_tell_each_other(process)
        they_stop_at_one_point(process)
        saves_and_falls_back(process, directory)
    print(f"process {process}: ok", flush=True)


if __name__ == "__main__":
    main()
