"""Slices that TensorStore wrote are a checkpoint that Orbax reads, on any mesh; and the other way round."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from sttts_jax.ckpt import files, slices
from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.restore import load_params, read_meta, read_tree
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.mesh import make_mesh
from sttts_jax.trees import named_leaves

LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
META = build_meta(step=0, config={}, data_layout=LAYOUT, counters={})
BF16 = ml_dtypes.bfloat16
LEAVES = {"llm/blocks/kv": ((3, 8, 2, 4, 6), BF16), "vit/position": ((13, 16), np.float32), "zero": ((5,), np.float32)}


@pytest.fixture(name="small_chunks")
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "WHOLE_BYTES", 100)
    monkeypatch.setattr(slices, "CHUNK_BYTES", 200)


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in LEAVES.items()}
    return arrays | {"zero": np.zeros(5, np.float32)}


def _write(step: Path, arrays: dict[str, np.ndarray]) -> None:
    slices.create_step(step, arrays, META)
    for name, array in arrays.items():
        units = (0, 2) if array.ndim == 5 else ()
        leaf = slices.create_leaf(step, name, array.shape, array.dtype, units)
        if units:
            for layer in range(array.shape[0]):
                for j in range(array.shape[2]):
                    index = (layer, slice(None), j)
                    slices.write_slice(leaf, index, array[index])
        else:
            rows = slices.chunk_of(leaf)[0]
            for i in range(0, array.shape[0], rows):
                slices.write_slice(leaf, (slice(i, min(i + rows, len(array))),), array[i : i + rows])


def test_orbax_reads_what_was_written_slice_by_slice(tmp_path: Path, small_chunks: None) -> None:
    arrays = _arrays()
    _write(tmp_path / "checkpoints" / "0", arrays)
    files.record_files(tmp_path / "checkpoints", 0)
    assert read_meta(tmp_path)["step"] == 0
    tree = named_leaves(read_tree(tmp_path / "checkpoints" / "0", "params"))
    assert {n: (x.shape, x.dtype) for n, x in tree.items()} == {n: (x.shape, x.dtype) for n, x in arrays.items()}
    loaded = named_leaves(load_params(whole_step(tmp_path)))
    assert all(isinstance(leaf, jax.Array) for leaf in loaded.values())
    assert {n: np.asarray(x).tobytes() for n, x in loaded.items()} == {n: x.tobytes() for n, x in arrays.items()}


def test_orbax_loads_it_onto_a_mesh_and_casts(tmp_path: Path, small_chunks: None) -> None:
    arrays = _arrays()
    _write(tmp_path / "0", arrays)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    specs = {"llm/blocks/kv": PartitionSpec(None, "fsdp", None, "tensor"), "vit/position": PartitionSpec(None, "fsdp")}
    target = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.float32,
            sharding=NamedSharding(mesh, specs.get("/".join(k.key for k in path), PartitionSpec())),
        ),
        read_tree(tmp_path / "0", "params"),
    )
    loaded = named_leaves(load_params(whole_step(tmp_path / "0"), target))
    assert loaded["llm/blocks/kv"].addressable_shards[0].data.shape == (3, 2, 2, 2, 6)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), array.astype(np.float32))


def test_slices_read_what_was_written(tmp_path: Path, small_chunks: None) -> None:
    arrays = _arrays()
    _write(tmp_path / "0", arrays)
    index = (1, slice(None), 0)
    kv = slices.open_leaf(tmp_path / "0", "llm/blocks/kv")
    assert slices.read_slice(kv, index).tobytes() == arrays["llm/blocks/kv"][index].tobytes()
    assert slices.fine_leaf(kv, "llm/blocks/kv", tmp_path) is kv


def test_a_leaf_with_large_chunks_is_copied_into_fine_ones(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training run writes one chunk a device, with all layers in it."""
    monkeypatch.setattr(slices, "COARSE_BYTES", 200)
    split = NamedSharding(make_mesh({"fsdp": 8}), PartitionSpec(None, "fsdp"))
    array = np.random.default_rng(0).standard_normal((6, 16, 5), np.float32)
    manager = Manager(tmp_path / "checkpoints", CheckpointConfig())
    manager.save(1, {"llm": {"w": jax.device_put(array, split)}}, {"n": jnp.zeros(1)}, None, META)
    manager.close()
    leaf = slices.open_leaf(files.resolve_step(tmp_path), "llm/w")
    assert slices.chunk_of(leaf) == (6, 2, 5)
    fine = slices.fine_leaf(leaf, "llm/w", tmp_path / "spare")
    assert slices.chunk_of(fine) == (3, 2, 5) and (tmp_path / "spare").exists()
    np.testing.assert_array_equal(slices.read_slice(fine, (4,)), array[4])


@given(
    shape=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    units=st.sets(st.integers(0, 3)),
    itemsize=st.sampled_from([2, 4]),
)
def test_chunks_keep_to_their_bounds(shape: list[int], units: set[int], itemsize: int) -> None:
    units = {axis for axis in units if axis < len(shape)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "WHOLE_BYTES", 64)
        patch.setattr(slices, "CHUNK_BYTES", 256)
        chunk = slices.chunk_shape(shape, itemsize, sorted(units))
    assert all(1 <= c <= n for c, n in zip(chunk, shape, strict=True))
    if np.prod(shape) * itemsize > 64:
        assert all(chunk[axis] == 1 for axis in units)
        assert np.prod(chunk) * itemsize <= 256
    else:
        assert chunk == tuple(shape)


@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=3), cut=st.lists(st.integers(1, 9), min_size=3, max_size=3)
)
def test_regions_cover_an_array_once(shape: list[int], cut: list[int]) -> None:
    count = np.zeros(shape, np.int32)
    for region in slices.regions(shape, cut[: len(shape)]):
        count[region] += 1
    assert (count == 1).all()
