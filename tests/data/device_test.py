"""Host rows to global arrays."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sttts_jax.data.device import to_device
from sttts_jax.data.schema import RowShape, empty_rows


def test_rows_are_split_over_devices_and_unchanged() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), devices=jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    batch = empty_rows(RowShape(frames=2, items=1, length=10, fraction="0.5", cells=4, size=(6, 6)), 8)
    batch["tokens"] += np.arange(8, dtype=np.int32)[:, None]
    with jax.transfer_guard("disallow"):
        placed = to_device(batch, sharding)
    for name, value in batch.items():
        assert placed[name].sharding == sharding and placed[name].dtype == value.dtype
        assert placed[name].addressable_shards[0].data.shape[0] == 1
        assert np.array_equal(placed[name], value)
    replicated = NamedSharding(mesh, PartitionSpec())
    mixed = to_device(batch, {name: replicated if name == "tokens" else sharding for name in batch})
    assert mixed["tokens"].sharding == replicated and np.array_equal(mixed["tokens"], batch["tokens"])
