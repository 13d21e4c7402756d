"""Names of leaves, regex labels that must cover every leaf, and tree differences a person can read."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sttts_jax.text_table import text_table

Rules = Sequence[tuple[str, str]]


def key_name(path: Sequence[Any]) -> str:
    """One jax key path as 'a/b/c': dict keys, attribute names and list indices alike."""
    parts = []
    for key in path:
        part = getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))
        parts.append(str(key) if part is None else str(part))
    return "/".join(parts)


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """{'a/b/c': leaf} in tree order."""
    return {key_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]}


def leaf_names(tree: Any) -> list[str]:
    """'a/b/c' of every leaf, in tree order."""
    return list(named_leaves(tree))


def map_named(function: Callable[[str, Any], Any], tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Like jax.tree.map, but the function also gets the leaf's name."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(key_name(path), leaf), tree, is_leaf=is_leaf)


def label_leaves(tree: Any, rules: Rules) -> Any:
    """A tree of labels with the structure of `tree`: the first rule whose regex matches the whole leaf name wins.

    Raises ValueError that lists the leaves no rule covers and the rules that match nothing (a rule hidden entirely by
    earlier ones still matches, so it is not listed).
    """
    patterns = [(re.compile(pattern), pattern, label) for pattern, label in rules]
    names = leaf_names(tree)
    uncovered = [name for name in names if not any(regex.fullmatch(name) for regex, _, _ in patterns)]
    idle = [pattern for regex, pattern, _ in patterns if not any(regex.fullmatch(name) for name in names)]
    if uncovered or idle:
        problems = []
        if uncovered:
            problems.append(f"no rule covers {_some(uncovered)}")
        if idle:
            problems.append(f"these rules match no leaf: {_some([repr(pattern) for pattern in idle])}")
        raise ValueError(
            "; ".join(problems) + "; edit the label rules so that every leaf has one and every rule is used"
        )
    return map_named(lambda name, _: next(label for regex, _, label in patterns if regex.fullmatch(name)), tree)


def _some(items: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _describe(leaf: Any) -> str:
    """'float32[3, 4]' of an array, an abstract array or a scalar; the type's name of anything else."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    if isinstance(leaf, bool | int | float | complex):
        return f"{type(leaf).__name__}[]"
    return type(leaf).__name__


def diff_trees(expected: Any, got: Any, limit: int = 40) -> str:
    """A table of the leaves whose presence, shape or dtype differ; '' when the trees agree.

    Leaves may be arrays, jax.ShapeDtypeStruct or anything with shape and dtype. At most `limit` lines are printed.
    """
    want, have = ({name: _describe(leaf) for name, leaf in named_leaves(tree).items()} for tree in (expected, got))
    rows = [
        (name, want.get(name, "-"), have.get(name, "-")) for name in want | have if want.get(name) != have.get(name)
    ]
    if not rows:
        return ""
    more = [f"... and {len(rows) - limit} more"] if len(rows) > limit else []
    return "\n".join([text_table(("leaf", "expected", "got"), rows[:limit]), *more])


def param_count(tree: Any) -> int:
    """Numbers in all leaves (arrays or abstract arrays)."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves, before any sharding."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def flatten_mapping(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {'a.b.c': value}; an empty mapping is a value. Lists are values too."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten_mapping(value, f"{name}."))
        else:
            flat[name] = value
    return flat
