"""A digest of files: other names or bytes, another digest; another place, the same."""

import shutil
from pathlib import Path

import pytest
from etils import epath

from sttts_jax.ckpt.content import check_tokenizer, content_digest, tokenizer_digests
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.workdir import Workdir


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


def test_a_step_knows_the_tokenizer_that_it_was_saved_with(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tokenizer" / name).write_text(f"{name} a")
    saved = {"step": 3, "config": {}, "data_layout": {}, "counters": {}}
    meta = build_meta(**saved, tokenizer=tokenizer_digests(workdir))
    check_tokenizer(meta, workdir)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tmp_path / "tokenizer" / name).write_text(f"{name} b")
        with pytest.raises(ValueError, match=f"{name} is not as it was when step 3 was saved.*copy it again"):
            check_tokenizer(meta, workdir)
    check_tokenizer(build_meta(**saved), workdir)  # of an earlier version
