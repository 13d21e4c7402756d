"""Names to data: what can be built and what can be read."""

import contextlib
import io
import os
import sys
from typing import Protocol

from absl import logging

from sttts_jax.data.config import Source
from sttts_jax.data.record import Record
from sttts_jax.data.sources.jsonl import JsonlSource
from sttts_jax.data.sources.local_copy import local_copy
from sttts_jax.data.sources.tfds_records import TfdsRecords
from sttts_jax.paths import as_path, is_local

BUILDERS = {
    "shapes_video_qa": "made-up clips of moving and appearing shapes, six families of questions, balanced answers"
}
READERS = {"jsonl": "your own videos, one JSON object a line: jsonl:PATH"}


class Records(Protocol):
    """Random access to records. Reading one may raise RecordError: then it is a bad record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Opened(Records, Protocol):
    """Records of a source, with a digest of what it holds, wherever it lies."""

    fingerprint: str


def open_source(source: Source) -> Opened:
    """Raises ValueError, listing the known names, for an unknown one, and saying what to type for one not built yet."""
    name, _, rest = source.name.partition(":")
    if name == "jsonl":
        return JsonlSource(rest, source.split)
    base, _, config = source.name.partition("/")
    if base not in BUILDERS:
        known = ", ".join([*BUILDERS, *(f"{r}:PATH" for r in READERS)])
        raise ValueError(f"there is no data source {source.name!r}; known are {known}")
    directory = find_built(base, config, source.data_dir)
    return TfdsRecords(local_copy(directory, source.split), source.split)


def build(name: str, data_dir: str, sizes: dict[str, int], style: str = "both") -> str:
    """Builds a dataset unless it is there; returns its directory. `sizes` are clips per split."""
    if name not in BUILDERS:
        raise ValueError(f"there is nothing to build under the name {name!r}; known are {', '.join(BUILDERS)}")
    if not is_local(data_dir):
        raise ValueError(f"{data_dir} is remote, where no dataset can be built; build it in a local one and copy it")
    import tensorflow_datasets as tfds

    from sttts_jax.data.sources.shapes_tfds import ShapesVideoQa, shapes_config

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    talk = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of configs that it has not seen before
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # and speaks of downloads
            config = shapes_config(**sizes, style=style)
            builder = ShapesVideoQa(data_dir=os.path.expanduser(data_dir), config=config, file_format="array_record")
            builder.download_and_prepare()
    finally:
        logging.set_verbosity(talk)
    return str(builder.data_path)


def built_configs(name: str, data_dir: str) -> list[str]:
    """Sizes of a dataset that lie whole in `data_dir`, such as "3000-300-600"."""
    home = os.path.join(os.path.expanduser(data_dir), name)
    return sorted(c for c in _folders(home) if _versions(os.path.join(home, c)))


def find_built(name: str, config: str, data_dir: str) -> str:
    """The version directory of a built dataset; without `config` there must be exactly one."""
    configs = built_configs(name, data_dir)
    command = f"sttts-jax data build {name} --data_dir {data_dir}"
    if config and config not in configs:
        built = f"; built are {', '.join(configs)}" if configs else ""
        *size, style = (*config.split("-"), "both")[:4]
        options = f"--size {','.join(size)}" + (f" --style {style}" if style != "both" else "")
        raise ValueError(
            f"{name}/{config} is not in {data_dir}{built}; build it with `{command} {options}`, or give the data_dir "
            "where it lies"
        )
    if not configs:
        raise ValueError(f"{name} is not in {data_dir}; build it with `{command}`, or give the data_dir where it lies")
    if not config and len(configs) > 1:
        choice = ", ".join(f"{name}/{c}" for c in configs)
        raise ValueError(f"{data_dir} holds {name} in several builds; name one of {choice}")
    folder = os.path.join(os.path.expanduser(data_dir), name, config or configs[0])
    return os.path.join(folder, max(_versions(folder), key=lambda v: [int(part) for part in v.split(".")]))


def _versions(folder: str) -> list[str]:
    return [v for v in _folders(folder) if v.replace(".", "").isdigit()]


def _folders(path: str) -> list[str]:
    folder = as_path(path)
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
