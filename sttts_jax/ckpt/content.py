"""What files hold, as one digest, whatever they are called and wherever they lie."""

import functools
import hashlib
from collections.abc import Iterator

from etils import epath

from sttts_jax.ckpt.files import file_sizes

_PIECE = 1 << 22  # bytes read at a time


def content_digest(*directories: epath.Path) -> str:
    """SHA-256 of all files below the directories, with their places there. Reads them whole, a piece at a time."""
    whole = hashlib.sha256()
    for directory in directories:
        for piece in _pieces(directory):
            whole.update(piece)
    return whole.hexdigest()


def _pieces(directory: epath.Path) -> Iterator[bytes]:
    """Of each file its name, its size, and what it holds."""
    for name, size in sorted(file_sizes(directory).items()):
        yield f"{name}\n{size}\n".encode()
        with (directory / name).open("rb") as file:
            yield from iter(functools.partial(file.read, _PIECE), b"")
