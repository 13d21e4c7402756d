"""A second process compiles nothing again; who said first where programs go, wins; several processes share nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from sttts_jax.compile_cache import MAX_BYTES, use_compile_cache, user_directory

DIRECTORY, SIZE = "jax_compilation_cache_dir", "jax_compilation_cache_max_size"
COMMAND = """
import sys
import jax
from sttts_jax.compile_cache import use_compile_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
place = use_compile_cache(*sys.argv[1:])
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))).block_until_ready()
print(place, len(hits))
"""


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As a user's first call finds JAX; the tests' own cache goes on afterwards."""
    before = {name: jax.config.values[name] for name in (DIRECTORY, SIZE)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    jax.config.update(DIRECTORY, None)
    jax.config.update(SIZE, -1)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)


def _process(*words: str, **variables: str) -> tuple[str, int]:
    """(directory, hits) of a process that compiles a small program."""
    environment = {name: value for name, value in os.environ.items() if name != DIRECTORY.upper()}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert not done.stderr
    *place, hits = done.stdout.split()
    return " ".join(place), int(hits)


def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    home = str(tmp_path / "home" / "sttts_jax" / "compiled")
    assert _process() == (home, 0)
    again, hits = _process()
    assert again == home and hits > 0
    assert list(Path(home).glob("*-cache")) and os.stat(home).st_mode & 0o077 == 0


def test_off_keeps_nothing(tmp_path: Path) -> None:
    assert _process("off") == _process("off") == ("", 0)
    assert not (tmp_path / "home").exists()


def test_the_variable_wins(tmp_path: Path) -> None:
    theirs = str(tmp_path / "theirs")
    assert _process(str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=theirs) == (theirs, 0)
    again, hits = _process("off", JAX_COMPILATION_CACHE_DIR=theirs)
    assert again == theirs and hits > 0
    assert not (tmp_path / "ours").exists()


def test_the_first_call_wins(tmp_path: Path) -> None:
    first = use_compile_cache(str(tmp_path / "first"))
    assert first == str(tmp_path / "first")
    assert use_compile_cache(str(tmp_path / "second")) == use_compile_cache("off") == first


def test_several_processes_share_nothing_unless_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _several(monkeypatch)
    assert use_compile_cache() == "" and jax.config.values[DIRECTORY] is None
    assert use_compile_cache(str(tmp_path / "shared")) == jax.config.values[DIRECTORY] == str(tmp_path / "shared")


def test_our_directory_is_limited_where_the_user_did_not_say() -> None:
    use_compile_cache()
    assert jax.config.values[SIZE] == MAX_BYTES
    jax.config.update(SIZE, 10**6)
    jax.config.update(DIRECTORY, None)
    use_compile_cache()
    assert jax.config.values[SIZE] == 10**6


def test_a_named_directory_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "program-cache").write_text("of another program")
    use_compile_cache(str(tmp_path))
    assert jax.config.values[SIZE] == -1 and (tmp_path / "program-cache").exists()


def test_a_program_that_was_cut_off_is_compiled_again() -> None:
    home, _ = _process()
    programs = list(Path(home).glob("*-cache"))
    for program in programs:
        os.truncate(program, 10)
        program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
    assert _process() == (home, 0)
    assert all(program.stat().st_size > 10 for program in programs)
    assert _process()[1] > 0


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "home").write_text("a file")
    assert use_compile_cache() == "" and jax.config.values[DIRECTORY] is None
    (line,) = caplog.messages
    assert "compiled programs are not kept in" in line and "Not a directory" in line and "\n" not in line


def test_the_users_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for base in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert user_directory() == "~/.cache/sttts_jax/compiled"
