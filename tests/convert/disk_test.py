"""The directory that a conversion writes: whole or absent, whatever ends the work."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.convert.disk import whole_directory


def test_a_directory_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), whole_directory(target) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    with whole_directory(target) as folder:
        (folder / "x").write_text("x")
        assert not target.exists()
    assert (target / "x").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="exists already"), whole_directory(target):
        pass
    (tmp_path / "void").mkdir()
    with whole_directory(tmp_path / "void") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "void" / "x").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_half_written(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as end, whole_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_handler_of_the_caller_stays(tmp_path: Path) -> None:
    seen: list[int] = []

    def handler(number: int, frame: Any) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with whole_directory(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] and (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere"), "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing \"w/c/0\" [os_error_code='28']"), "No space left on device"),
    ],
)
def test_a_full_or_read_only_disk_is_one_sentence(error: Exception, cause: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        pytest.raises(ValueError, match=f"{target} cannot be written .{cause}.; nothing of it is left"),
        whole_directory(target) as folder,
    ):
        (folder / "half").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), whole_directory(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")
