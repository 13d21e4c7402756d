"""What may be opened, and that nothing waits."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sttts_jax.data.crops import read_image
from sttts_jax.data.files import open_file
from sttts_jax.data.subtitles import read_subtitles
from sttts_jax.data.video import probe


def test_a_name_is_never_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colons, schemes, patterns and options of other programs are letters of a name."""
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:45.mp4", "file:a", "concat:a|b", "img%03d.png", "*.png", "-", "pipe:0", "data:,x"):
        Path(name).write_bytes(name.encode())
        with open_file(name, name, ValueError) as file:
            assert file.read() == name.encode()
    (tmp_path / "http:" / "127.0.0.1").mkdir(parents=True)
    Path("http://127.0.0.1/a.mp4").write_bytes(b"mine")
    with open_file("http://127.0.0.1/a.mp4", "x", ValueError) as file:
        assert file.read() == b"mine"


@pytest.mark.parametrize(
    ("read", "ending"),
    [(probe, ".mp4"), (read_image, ".png"), (read_subtitles, ".srt")],
    ids=["video", "image", "text"],
)
def test_what_is_no_file_is_refused_at_once(read: Callable[[Path], object], ending: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for, a device may never end."""
    pipe, folder, loop, empty = (tmp_path / f"{name}{ending}" for name in ("pipe", "folder", "loop", "empty"))
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    empty.touch()
    device = tmp_path / f"device{ending}"
    device.symlink_to("/dev/zero")
    local = tmp_path / f"local{ending}"
    with socket.socket(socket.AF_UNIX) as listener:
        monkey = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        try:
            listener.bind(local.name)
        finally:
            os.chdir(monkey)
        cases = {
            pipe: "is not a file but a pipe",
            folder: "is not a file but a folder",
            device: "is not a file but a device",
            local: "is not a file but a socket",
            loop: "cannot be read",
            empty: "is empty",
            tmp_path / f"none{ending}": "no such file",
            tmp_path / ("a" * 300 + ending): "cannot be read .File name too long",
            tmp_path / f"a\0b{ending}": "cannot be read .embedded null byte",
            tmp_path / f"a\ud800b{ending}": "cannot be read|no such file",
            empty / f"below{ending}": "no such file",
        }
        for path, message in cases.items():
            with pytest.raises(ValueError, match=message) as caught:
                read(path)
            assert str(caught.value).startswith(str(path)[:200]) and "\n" not in str(caught.value)
