"""A digest of files: other names or bytes, another digest; another place, the same."""

import shutil
from pathlib import Path

from etils import epath

from sttts_jax.ckpt.content import content_digest


def test_a_digest_covers_names_and_bytes(tmp_path: Path) -> None:
    seen = set()
    for number, files in enumerate(({"a": b"xy"}, {"b": b"xy"}, {"a": b"xz"}, {"a": b"x", "b": b"y"}, {"c/a": b"xy"})):
        for name, data in files.items():
            (tmp_path / str(number) / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(number) / name).write_bytes(data)
        seen.add(content_digest(epath.Path(tmp_path / str(number))))
    assert len(seen) == 5


def test_a_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"a/{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"a/{number % 3}/{number}").write_bytes(bytes(number))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "b")
    assert content_digest(one) == content_digest(other) != content_digest(one, other)
