"""What files hold, as one digest, whatever they are called and wherever they lie."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sttts_jax.ckpt.checksums import digest
from sttts_jax.ckpt.files import file_sizes
from sttts_jax.ckpt.workdir import Workdir

_PIECE = 1 << 22  # bytes read at a time
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


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


def tokenizer_digests(workdir: Workdir) -> dict[str, str]:
    """{file: digest} of the run's tokenizer, for the `meta` of its steps."""
    files = (workdir.tokenizer / name for name in _TOKENIZER)
    return {file.name: digest(file) for file in files if file.exists()}


def check_tokenizer(meta: Mapping[str, Any], workdir: Workdir) -> None:
    """Raises ValueError where the tokenizer is another than when the step was saved: it would read other words."""
    told, now = meta.get("tokenizer", {}), tokenizer_digests(workdir)
    changed = next((name for name, known in told.items() if now.get(name) != known), None)
    if changed is not None:
        raise ValueError(
            f"{workdir.tokenizer / changed} is not as it was when step {meta['step']} was saved, so it would read "
            "other words; copy it again"
        )
