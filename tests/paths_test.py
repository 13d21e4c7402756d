"""Paths that cannot be served are refused early; writes are whole or absent."""

import importlib.util
import os
from pathlib import Path

import pytest

from sttts_jax import paths


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


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")), reason="gs:// can be served here"
)
def test_gs_without_its_package_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="gs:// paths need the package gcsfs"):
        paths.as_path("gs://bucket/run")


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


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    paths.write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": ')
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        paths.read_json(tmp_path / "a.json")
