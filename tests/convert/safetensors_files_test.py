"""safetensors files: agreement with the reference reader and writer, shards, and one sentence for what is broken."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.convert.safetensors_files import (
    INDEX,
    SINGLE,
    BadFile,
    TensorSpec,
    dtype_name,
    list_tensors,
    numpy_dtype,
    plan_shards,
    read_tensor,
    write_file,
    write_shards,
)

RNG = np.random.default_rng(0)
TENSORS = {
    "b.weight": RNG.standard_normal((5, 3)).astype(ml_dtypes.bfloat16),
    "a.weight": RNG.standard_normal((4, 2, 3)).astype(np.float32),
    "a.bias": RNG.standard_normal(7).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
}
FUZZED = 2000
SPECS = [TensorSpec(name, dtype_name(x.dtype), x.shape) for name, x in TENSORS.items()]


def _whole(name: str) -> list[np.ndarray]:
    return [TENSORS[name]]


def _in_rows(name: str) -> Iterator[np.ndarray]:
    yield from TENSORS[name]


def _check(listing: dict[str, Any]) -> None:
    assert listing.keys() == TENSORS.keys()
    for name, want in TENSORS.items():
        got = read_tensor(listing[name])
        assert got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def test_the_reference_reads_what_is_written(tmp_path: Path) -> None:
    write_shards(tmp_path, SPECS, _in_rows)
    theirs = safetensors.numpy.load_file(tmp_path / SINGLE)
    assert {name: x.tobytes() for name, x in theirs.items()} == {name: x.tobytes() for name, x in TENSORS.items()}
    with safetensors.safe_open(tmp_path / SINGLE, "np") as file:
        assert file.metadata() == {"format": "pt"}
    listing = list_tensors(tmp_path)
    _check(listing)
    assert all(entry.start % numpy_dtype(entry.dtype).itemsize == 0 for entry in listing.values())
    assert list_tensors(tmp_path / SINGLE) == listing


def test_what_the_reference_writes_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    _check(list_tensors(tmp_path))


def test_shards_and_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path, SPECS, _whole, max_shard_bytes=130)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in TENSORS.values())
    shard = {name: safetensors.numpy.load_file(tmp_path / file) for name, file in index["weight_map"].items()}
    assert all(name in tensors for name, tensors in shard.items())
    _check(list_tensors(tmp_path))


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), limit=st.integers(1, 60))
def test_plan_of_shards(sizes: list[int], limit: int) -> None:
    specs = [TensorSpec(str(i), "F32", (size,)) for i, size in enumerate(sizes)]
    shards = plan_shards(specs, limit)
    assert [spec for shard in shards for spec in shard] == specs and all(shards)
    for shard in shards:
        assert len(shard) == 1 or sum(spec.nbytes for spec in shard) <= limit
    for one, other in zip(shards[:-1], shards[1:], strict=True):
        assert sum(spec.nbytes for spec in one) + other[0].nbytes > limit


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 0), slice(2, None), slice(None, 2), slice(3, 99)])
def test_rows_of_a_tensor(rows: slice, tmp_path: Path) -> None:
    write_shards(tmp_path, SPECS, _whole)
    listing = list_tensors(tmp_path)
    for name in ("a.weight", "b.weight"):
        np.testing.assert_array_equal(read_tensor(listing[name], rows), TENSORS[name][rows])


def _rewrite(file: Path, change: Any) -> None:
    """The header through `change`, the bytes as they are."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text = change(json.loads(data[8 : 8 + length]))
    text = (text if isinstance(text, str) else json.dumps(text)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _edit(name: str, **fields: Any) -> Any:
    return lambda header: header | {name: {**header[name], **fields}}


BROKEN = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-1]), r"ends early: \d+ bytes where its header describes"),
    "no header": (lambda f: f.write_bytes(f.read_bytes()[:30]), "is no whole safetensors file"),
    "too small": (lambda f: f.write_bytes(b"abc"), "is no whole safetensors file"),
    "empty": (lambda f: f.write_bytes(b""), "is no whole safetensors file"),
    "huge header": (lambda f: f.write_bytes(struct.pack("<Q", 2**60) + f.read_bytes()), "its header would have"),
    "too long": (lambda f: f.write_bytes(f.read_bytes() + b"x"), "is too long"),
    "not JSON": (lambda f: f.write_bytes(struct.pack("<Q", 4) + b"{ab}"), "header that is not JSON"),
    "no table": (lambda f: _rewrite(f, lambda h: [1]), "not a table of tensors"),
    "twice": (lambda f: _rewrite(f, lambda h: '{"a": 1, "a": 2}'), "'a' occurs twice"),
    "no offsets": (lambda f: _rewrite(f, lambda h: h | {"a.bias": {"dtype": "F16"}}), "a.bias lacks dtype, shape"),
    "other dtype": (lambda f: _rewrite(f, _edit("a.bias", dtype="F4")), "a.bias has the dtype F4"),
    "other shape": (lambda f: _rewrite(f, _edit("a.bias", shape=[8])), r"a.bias is F16\[8\], which does not take"),
    "negative": (lambda f: _rewrite(f, _edit("a.bias", data_offsets=[-14, 0])), "a.bias is F16"),
    "overlap": (lambda f: _rewrite(f, _edit("a.bias", data_offsets=[0, 14])), "do not follow"),
    "deep": (lambda f: _rewrite(f, lambda h: "[" * 100_000), "header that is not JSON"),
    "no name of a dtype": (lambda f: _rewrite(f, _edit("a.bias", dtype=["F16"])), "a.bias has the dtype"),
    "too many axes": (lambda f: _rewrite(f, _edit("a.bias", shape=[2**40] * 5000)), "a.bias is F16"),
    "lines in a name": (lambda f: _rewrite(f, lambda h: h | {"x" * 5000 + "\nx": 1}), r"x{199}.* lacks dtype"),
    "odd shape": (lambda f: _rewrite(f, _edit("a.bias", shape="7")), "a.bias is F16"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file(kind: str, tmp_path: Path) -> None:
    write_shards(tmp_path, SPECS, _whole)
    damage, message = BROKEN[kind]
    damage(tmp_path / SINGLE)
    with pytest.raises(BadFile, match=message) as error:
        list_tensors(tmp_path)
    assert SINGLE in str(error.value) and "\n" not in str(error.value)


def test_any_damage_is_a_sentence(tmp_path: Path) -> None:
    """A fuzzer with a fixed seed: bytes changed, cut off, put in; with the reference's own files and with ours."""
    rng, refused = np.random.default_rng(0), 0
    write_shards(tmp_path, SPECS, _whole)
    ours = (tmp_path / SINGLE).read_bytes()
    safetensors.numpy.save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    theirs = (tmp_path / SINGLE).read_bytes()
    for number in range(FUZZED):
        (tmp_path / SINGLE).write_bytes(_fuzzed((ours, theirs)[number % 2], rng))
        try:
            for entry in list_tensors(tmp_path).values():
                read_tensor(entry)
        except BadFile as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert refused > FUZZED // 2


def _fuzzed(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: a byte of the header, a byte anywhere, bytes lost, bytes put in, a piece doubled."""
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(5), int(rng.integers(len(data)))
        header = int(rng.integers(min(len(data), 330)))
        new = rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8).tobytes()
        data = (
            data[:header] + new[:1] + data[header + 1 :],
            data[:place] + new[:1] + data[place + 1 :],
            data[: max(place, 1)],
            data[:header] + new + data[header:],
            data[:header] + data[header : header + 40] + data[header:],
        )[kind]
    return data


def test_many_names_take_no_longer_than_their_bytes(tmp_path: Path) -> None:
    """200,000 tensors, the last of them twice: time that grows with the square would be minutes."""
    entry = '{"dtype":"F32","shape":[],"data_offsets":[0,0]}'
    names = [f'"t{number}":{entry}' for number in range(200_000)]
    text = ("{" + ",".join([*names, names[-1]]) + "}").encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text)
    begun = time.process_time()
    with pytest.raises(BadFile, match="'t199999' occurs twice"):
        list_tensors(tmp_path)
    assert time.process_time() - begun < 20


def test_a_header_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / SINGLE).open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000))
        file.truncate(100_000_000)  # a hole, not bytes
    with pytest.raises(BadFile, match="a header of 99000000 bytes, more than 33554432; save it in more files"):
        list_tensors(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / SINGLE)
    with pytest.raises(BadFile, match="is no whole safetensors file: it has 0 bytes"):
        list_tensors(tmp_path)


def test_a_tensor_that_only_the_metadata_names(tmp_path: Path) -> None:
    """As the reference's writer stores a head that is tied to the embedding."""
    notes = {"lm_head.weight": "b.weight", "format": "pt", "lost": "nothing", "a.bias": "b.weight"}
    safetensors.numpy.save_file(TENSORS, tmp_path / SINGLE, metadata=notes)
    listing = list_tensors(tmp_path)
    assert listing.keys() == {*TENSORS, "lm_head.weight"} and listing["lm_head.weight"] == listing["b.weight"]
    assert listing["a.bias"].shape == (7,)
    del listing["lm_head.weight"]
    _check(listing)


def _shards(folder: Path) -> dict[str, Any]:
    write_shards(folder, SPECS, _whole, max_shard_bytes=130)
    return json.loads((folder / INDEX).read_text())


FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "lost": FIRST}, f"lost is in {FIRST}, but it is not"),
        (lambda m: {k: v for k, v in m.items() if k != "a.bias"}, "holds a.bias, which .* does not list"),
        (lambda m: {**m, "b.weight": SECOND}, f"b.weight is in {SECOND}, but it is in {FIRST}"),
        (lambda m: {**m, "x": "model-00003-of-00003.safetensors"}, "which is not there; download that shard"),
        (lambda m: {**m, "x": "../model.safetensors"}, "only .safetensors files beside it"),
        (lambda m: {**m, "x": "pytorch_model.bin"}, "only .safetensors files beside it"),
        (lambda m: {}, "has no weight_map"),
        (lambda m: {"a": 3}, "has no weight_map"),
    ],
)
def test_a_wrong_index(change: Any, message: str, tmp_path: Path) -> None:
    index = _shards(tmp_path)
    index["weight_map"] = change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadFile, match=message):
        list_tensors(tmp_path)


def test_broken_shards(tmp_path: Path) -> None:
    _shards(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        list_tensors(tmp_path)
    _shards(tmp_path)
    (tmp_path / SECOND).write_bytes((tmp_path / SECOND).read_bytes()[:-2])
    with pytest.raises(BadFile, match=f"{SECOND} ends early"):
        list_tensors(tmp_path)
    _shards(tmp_path)
    (tmp_path / SECOND).write_bytes((tmp_path / FIRST).read_bytes())
    with pytest.raises(BadFile, match=f"is in {FIRST} and again in {SECOND}"):
        list_tensors(tmp_path)


def test_kinds_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_tensors(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds neither"):
        list_tensors(tmp_path)
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(BadFile, match=f"{name}, which can run code when read"):
            list_tensors(tmp_path)
        with pytest.raises(BadFile, match=f"{name} is not read: only .safetensors"):
            list_tensors(tmp_path / name)
        (tmp_path / name).unlink()
    _shards(tmp_path)
    write_file(tmp_path / SINGLE, SPECS, _whole)
    with pytest.raises(BadFile, match="holds both"):
        list_tensors(tmp_path)


def test_dtypes_that_are_not_parameters(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"ids": np.arange(3)}, tmp_path / SINGLE)
    with pytest.raises(BadFile, match="a tensor of dtype I64 is not read"):
        read_tensor(list_tensors(tmp_path)["ids"])
    with pytest.raises(ValueError, match="parameters of dtype float64 are not written"):
        dtype_name(np.float64)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path, SPECS, _whole)
    listing = list_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-60])
    with pytest.raises(BadFile, match="ends early"):
        for entry in listing.values():
            read_tensor(entry)


def test_pieces_that_are_not_the_tensor(tmp_path: Path) -> None:
    spec = [TensorSpec("x", "F32", (2, 3))]
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"x F32\[2, 3\] has 24 bytes, but 12 were given"):
        write_shards(tmp_path, spec, lambda name: [x[:1]])
    with pytest.raises(ValueError, match="x was to be written as F32, but is float16"):
        write_shards(tmp_path, spec, lambda name: [x.astype(np.float16)])
    with pytest.raises(ValueError, match="x would be written twice"):
        write_shards(tmp_path, spec * 2, lambda name: [x])
    with pytest.raises(ValueError, match="shards of 0 bytes"):
        write_shards(tmp_path, spec, lambda name: [x], max_shard_bytes=0)
