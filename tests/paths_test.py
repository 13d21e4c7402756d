"""Paths that cannot be served are refused early; writes are whole or absent."""

import errno
import importlib.util
import os
from pathlib import Path

import pytest

from sttts_jax import paths
from tests.fake_gcs import FakeGcs


def test_local_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(paths.as_path("runs/../a")) == str(tmp_path / "a")
    assert str(paths.as_path("~/a")) == os.path.expanduser("~/a")
    assert paths.is_local(tmp_path) and not paths.is_local("gs://b/a")


@pytest.mark.parametrize("scheme", ["s3://b/a", "http://h/a", "file:///a"])
def test_other_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match="is not supported; use a local path or gs://"):
        paths.as_path(scheme)


def test_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="the path is empty"):
        paths.as_path("")


def test_gs_without_its_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="gs:// paths need the package gcsfs"):
        paths.as_path("gs://bucket/run")


def test_what_others_write_to_a_store_is_seen_at_once(gcs: FakeGcs) -> None:
    """TensorStore and other processes write behind gcsfs, which would go on with the listing that it has."""
    folder = paths.as_path("gs://seen/run")
    paths.write_text(folder / "a.txt", "a")
    assert [file.name for file in folder.iterdir()] == ["a.txt"] and not (folder / "b.txt").exists()
    gcs.put("seen/run/b.txt", b"bb", {})
    assert sorted(file.name for file in folder.iterdir()) == ["a.txt", "b.txt"]
    assert {name: size for name, (size, _) in paths.list_objects(folder).items()} == {"a.txt": 1, "b.txt": 2}
    gcs.put("seen/run/b.txt", b"", {})
    assert (folder / "b.txt").read_bytes() == b""


def test_a_store_that_refuses_is_one_error_with_the_name(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "fail", lambda method, path: 403 if "/refused/" in path else 0)
    with pytest.raises(OSError) as failed:
        paths.write_text("gs://refused/run/a.txt", "a")
    assert failed.value.errno == errno.EIO and failed.value.filename == "gs://refused/run/a.txt"


def test_writes_make_parents_and_leave_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    paths.write_json(target, {"x": [1, 2]})
    paths.write_json(target, {"x": [3]})
    assert paths.read_json(target) == {"x": [3]}
    assert [path.name for path in target.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    paths.write_json(target, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        paths.write_json(target, float("nan"))
    with pytest.raises(TypeError):
        paths.write_bytes(target, "text")  # type: ignore[arg-type]
    assert paths.read_json(target) == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_write_that_the_disk_refuses_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    paths.write_json(target, 1)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*a.json'") as caught:
        paths.write_json(target, 2)
    assert caught.value.errno == errno.ENOSPC
    assert paths.read_json(target) == 1 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_places_that_cannot_be_written_are_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.check_writable(tmp_path / "new/a.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="because .*/file is a file; choose another place"):
        paths.check_writable(tmp_path / "file/new/a.json")
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        paths.check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only file system
    with pytest.raises(ValueError, match=f"because {tmp_path} is read-only; choose another place"):
        paths.check_writable(tmp_path / "new/a.json")


def test_nothing_but_files_is_replaced_or_read(tmp_path: Path) -> None:
    """A pipe would be waited for, and root could put a file in the place of a device."""
    os.mkfifo(tmp_path / "pipe.json")
    for place in (tmp_path / "pipe.json", tmp_path):
        with pytest.raises(ValueError, match="is a (pipe|folder); give the name of a file"):
            paths.check_writable(place)
        with pytest.raises(ValueError, match="is a (pipe|folder); give the name of a file"):
            paths.write_json(place, 1)
        with pytest.raises(ValueError, match="is not a file but a (pipe|folder)"):
            paths.read_json(place)
    with pytest.raises(ValueError, match="/dev/null is a device; give the name of a file"):
        paths.check_writable(os.devnull)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    paths.write_json(tmp_path / "link.json", 1)
    paths.write_json(tmp_path / "link.json", 2)
    assert (tmp_path / "link.json").is_symlink() and paths.read_json(tmp_path / "a.json") == 2


def test_names_of_files_differ_where_texts_do() -> None:
    texts = ["a/b", "a_b", "a:b", "ä", "ö", "x" * 300, "x" * 301, "é" * 300, ".", "..", "", "a b", "a\ud800", "A.b-c_d"]
    names = [paths.file_name(text) for text in texts]
    assert len(set(names)) == len(names) and names[-1] == texts[-1]
    assert all(name.isascii() and 0 < len(name) <= 80 and "/" not in name and name.strip(".") for name in names)


def test_names_of_files_that_are_no_text_can_be_written_about(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    paths.write_text(tmp_path / "page.html", f"<p>{name} caf\u00e9</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>caf\\udce9.mp4 caf\xc3\xa9</p>"


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    paths.write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        paths.read_json(tmp_path / "a.json")
