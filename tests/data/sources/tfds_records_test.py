"""Built datasets whose files are damaged: bad records where records are bad, a sentence where all is."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sttts_jax.data.record import RecordError
from sttts_jax.data.sources.registry import find_built
from sttts_jax.data.sources.tfds_records import TfdsRecords


@pytest.fixture
def built(data_dir: str, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(find_built("shapes_video_qa", "", data_dir), tmp_path / "1.0.0"))


def _train_file(built: Path) -> Path:
    (file,) = built.glob("*-train.array_record*")
    return file


def test_a_damaged_record_is_a_bad_record(built: Path) -> None:
    whole = [TfdsRecords(str(built), "train")[index] for index in range(24)]
    file, bad = _train_file(built), set()
    for seed in range(12):
        data = bytearray(file.read_bytes())
        data[int(np.random.default_rng(seed).integers(100, 150_000))] ^= 1 << seed % 8
        file.write_bytes(data)
    records = TfdsRecords(str(built), "train")
    for index in range(24):
        try:
            assert records[index].messages == whole[index].messages
        except RecordError as error:
            assert f"(train), record {index}: is damaged (" in str(error) and str(error).endswith(
                "build the dataset again"
            )
            bad.add(index)
    assert 5 < len(bad) < 20  # each hit one of the 24, some the same


@pytest.mark.parametrize("size", [0, 1000, 70_000])
def test_a_file_cut_short_yields_bad_records(built: Path, size: int) -> None:
    file = _train_file(built)
    file.write_bytes(file.read_bytes()[:size])
    try:
        records = TfdsRecords(str(built), "train")
    except ValueError as error:
        assert "the split 'train' cannot be read" in str(error)
        return
    for index in range(len(records)):
        with pytest.raises(RecordError, match="is damaged"):
            records[index]


def test_parts_that_cannot_be_are_one_sentence(built: Path) -> None:
    for split in ("train[:500]", "train[:0]", "train[", "train[:150%]"):
        with pytest.raises(ValueError, match=r"the split .* cannot be read \("):
            TfdsRecords(str(built), split)


def test_what_is_no_dataset_of_records(built: Path) -> None:
    (built / "features.json").write_text((built / "features.json").read_text().replace('"video_id"', '"name"'))
    with pytest.raises(ValueError, match="lacks the features video_id"):
        TfdsRecords(str(built), "train")
    (built / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="is no whole dataset"):
        TfdsRecords(str(built), "train")


def test_the_fingerprint_is_of_what_was_built(built: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(built, tmp_path / "elsewhere" / "1.0.0")
    mine = TfdsRecords(str(built), "train").fingerprint
    assert TfdsRecords(str(moved), "train").fingerprint == mine
    info = built / "dataset_info.json"
    info.write_text(info.read_text().replace('"24"', '"23"'))
    assert TfdsRecords(str(built), "train").fingerprint != mine
