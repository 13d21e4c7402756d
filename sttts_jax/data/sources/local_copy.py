"""Record files that lie in a store, copied to a local folder: readers of ArrayRecord know mounted file systems alone.

The folder is named after the place and what the objects hold, so that other data is another folder, and a copy that is
there is used again. Each file is whole or absent, so that the processes of a machine may copy at the same time.
"""

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import logging
from etils import epath

from sttts_jax.paths import as_path, file_name, is_local, list_objects

SHARE = 0.5  # of the free space of the disk, that a copy may take
_AT_ONCE = 8
_RECORDS = ".array_record"


def local_copy(folder: str, split: str) -> str:
    """The folder itself where it is local, else one with its descriptions and the records of the split.

    Raises ValueError where they take more than SHARE of what the disk has left, OSError where they cannot be copied.
    """
    if is_local(folder):
        return folder
    part = f"-{split.split('[')[0]}{_RECORDS}"
    wanted = {n: about for n, about in list_objects(folder).items() if _RECORDS not in n or part in n}
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    place = _home() / file_name(folder.removeprefix("gs://"), 60) / digest
    missing = [name for name in wanted if not (place / name).exists()]
    if missing:
        _check_room(folder, place, sum(wanted[name][0] for name in missing))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: _copy(as_path(folder) / name, place / name), missing))
    return str(place)


def _home() -> Path:
    """$XDG_CACHE_HOME/sttts_jax/records, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else "~/.cache").expanduser() / "sttts_jax" / "records"


def _check_room(folder: str, place: Path, size: int) -> None:
    there = next(parent for parent in place.parents if parent.exists())
    free = shutil.disk_usage(there).free
    if size > SHARE * free:
        raise ValueError(
            f"{folder}: its records take {size / 2**30:.2f} GiB, which are copied to {place} before they are read, and "
            f"its disk has {free / 2**30:.2f} GiB left, of which {SHARE:.0%} may be taken; set XDG_CACHE_HOME to a "
            "larger one, mount the bucket, or give a jsonl: file, whose videos are read where they lie"
        )
    logging.info("copying %.2f GiB of records from %s to %s", size / 2**30, folder, place)


def _copy(source: epath.Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file, source.open("rb") as opened:
        try:
            shutil.copyfileobj(opened, file, 2**24)
            file.close()
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
