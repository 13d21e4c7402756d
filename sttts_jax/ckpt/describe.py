"""What is in a checkpoint, as text: its steps, counters, trees and config, without building the model."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.meta import saved_config
from sttts_jax.ckpt.restore import OPT, PARAMS, read_meta, read_tree
from sttts_jax.paths import PathLike
from sttts_jax.text_table import text_table
from sttts_jax.trees import flatten_mapping, named_leaves, param_count, tree_bytes


def describe(directory: PathLike, depth: int = 0) -> Iterator[str]:
    """Titled tables, a line between them, of a run's workdir, a directory of steps, or one step; local or gs://.

    First the steps with their size and health, as far as that shows without arrays, then of the newest whole step the
    counters, the trees with shapes and dtypes, and the config of the run. Leaves below `depth` names are folded; 0
    shows all. Raises FileNotFoundError where no step is whole, after the table of steps.
    """
    for place in files.directories_of_steps(directory):
        yield f"{place}\n{_steps_table(place)}\n"
    step = files.resolve_step(directory)
    meta = read_meta(step)
    config = saved_config(meta)
    yield f"{step}\n{_plain_table({key: value for key, value in meta.items() if key != 'config'})}\n"
    for name in (PARAMS, OPT):
        if (step / name).exists():  # a converted checkpoint has no optimizer state
            yield f"{name}\n{_tree_table(read_tree(step, name), depth)}\n"
    yield f"config\n{_plain_table(config)}"


def _steps_table(directory: epath.Path) -> str:
    rows = []
    for step in files.list_steps(directory):
        path = files.step_directory(directory, step)
        size = sum(files.file_sizes(path).values()) / 2**20
        when = datetime.fromtimestamp(files.written_at(path), UTC).strftime("%Y-%m-%d %H:%M UTC")
        rows.append((str(step), f"{size:.2f}", when, files.problem_of(directory, step) or "whole, arrays unread"))
    return text_table(("step", "MiB", "written", "state"), rows)


def _tree_table(tree: Any, depth: int) -> str:
    """Leaves, those with the same first `depth` names folded into one line (0: never)."""
    groups: dict[str, list[Any]] = {}
    for name, leaf in named_leaves(tree).items():
        parts = name.split("/")
        groups.setdefault("/".join(parts[:depth]) + "/..." if depth and len(parts) > depth else name, []).append(leaf)
    rows = []
    for name, leaves in groups.items():
        shape = f"{leaves[0].dtype}{list(leaves[0].shape)}" if len(leaves) == 1 else f"{len(leaves)} leaves"
        rows.append((name, shape, f"{param_count(leaves):,}", f"{tree_bytes(leaves) / 2**20:.2f}"))
    count = f"{len(named_leaves(tree))} leaves"
    rows.append(("total", count, f"{param_count(tree):,}", f"{tree_bytes(tree) / 2**20:.2f}"))
    return text_table(("leaf", "array", "numbers", "MiB"), rows)


def _plain_table(tree: dict[str, Any]) -> str:
    return text_table(("key", "value"), [(key, json.dumps(value)) for key, value in flatten_mapping(tree).items()])
