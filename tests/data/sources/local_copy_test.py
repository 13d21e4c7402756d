"""Records of a bucket come to a local folder: those of one split, once, and not where there is no room."""

from pathlib import Path

import pytest

from sttts_jax.data.sources import local_copy
from sttts_jax.data.sources.registry import build
from tests.fake_gcs import FakeGcs


@pytest.fixture
def folder(gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = tmp_path.name.replace("_", "-")
    for name in ("dataset_info.json", "d-train.array_record-00000-of-00001", "d-test.array_record-00000-of-00001"):
        gcs.put(f"{bucket}/d/1.0.0/{name}", name.encode(), {})
    return f"gs://{bucket}/d/1.0.0"


def test_one_split_is_copied_once(gcs: FakeGcs, folder: str) -> None:
    place = Path(local_copy.local_copy(folder, "train[:50%]"))
    names = ["d-train.array_record-00000-of-00001", "dataset_info.json"]
    assert sorted(file.name for file in place.iterdir()) == names
    assert all(file.read_text() == file.name for file in place.iterdir())
    before = len(gcs.log)
    assert local_copy.local_copy(folder, "train") == str(place)
    assert not [line for line in gcs.log[before:] if "download" in line or "alt=media" in line]
    gcs.put(f"{folder.removeprefix('gs://')}/{names[0]}", b"other", {})  # built anew
    other = Path(local_copy.local_copy(folder, "train"))
    assert other != place and (other / names[0]).read_bytes() == b"other"
    assert local_copy.local_copy(str(place), "train") == str(place)


def test_too_much_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = local_copy.shutil.disk_usage("/")
    monkeypatch.setattr(local_copy.shutil, "disk_usage", lambda path: usage._replace(free=60))
    with pytest.raises(ValueError, match=f"{folder}: its records take .* set XDG_CACHE_HOME to a larger one"):
        local_copy.local_copy(folder, "train")


def test_nothing_is_built_in_a_bucket(gcs: FakeGcs) -> None:
    with pytest.raises(ValueError, match="gs://b/data is remote, where no dataset can be built"):
        build("shapes_video_qa", "gs://b/data", {"train": 1})
