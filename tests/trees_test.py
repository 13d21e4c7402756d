"""Leaf names, labels that must cover every leaf, and the readable difference of two trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sttts_jax import trees

TREE = {"vit": {"block": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}, "llm": [np.zeros(4, np.int32)]}


def test_names_of_dicts_lists_and_attributes() -> None:
    assert trees.leaf_names(TREE) == ["llm/0", "vit/block/bias", "vit/block/kernel"]
    state = optax.adam(1e-3).init({"w": jnp.zeros(2)})
    assert trees.leaf_names(state) == ["0/count", "0/mu/w", "0/nu/w"]


def test_labels_take_the_first_rule() -> None:
    labels = trees.label_leaves(TREE, [(r".*/bias", "plain"), (r"vit/.*", "vit"), (r"llm/.*", "llm")])
    assert labels == {"vit": {"block": {"kernel": "vit", "bias": "plain"}}, "llm": ["llm"]}


def test_labels_match_whole_names() -> None:
    with pytest.raises(ValueError, match="no rule covers vit/block/bias, vit/block/kernel"):
        trees.label_leaves(TREE, [(r"vit", "vit"), (r"llm/.*", "llm")])


def test_labels_name_uncovered_leaves_and_idle_rules() -> None:
    with pytest.raises(ValueError, match=r"no rule covers llm/0; these rules match no leaf: 'scorer/\.\*'"):
        trees.label_leaves(TREE, [(r"vit/.*", "vit"), (r"scorer/.*", "scorer")])


def test_equal_trees_have_no_difference() -> None:
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)
    assert trees.diff_trees(abstract, TREE) == ""


def test_difference_names_shape_dtype_missing_and_extra() -> None:
    got = {"vit": {"block": {"kernel": np.zeros((2, 4)), "bias": np.zeros(3, np.float32)}}, "new": np.zeros(1)}
    text = trees.diff_trees(TREE, got)
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert set(rows) == {"leaf", "llm/0", "vit/block/bias", "vit/block/kernel", "new"}
    assert "float64[2, 3]" in rows["vit/block/kernel"] and "float64[2, 4]" in rows["vit/block/kernel"]
    assert "float32[3]" in rows["vit/block/bias"]
    assert rows["llm/0"].endswith("-")


def test_long_differences_are_cut() -> None:
    text = trees.diff_trees({str(i): np.zeros(1) for i in range(100)}, {}, limit=5)
    assert text.endswith("... and 95 more") and len(text.splitlines()) == 7


def test_counts_and_bytes() -> None:
    assert trees.param_count(TREE) == 6 + 3 + 4
    assert trees.tree_bytes(TREE) == 8 * 9 + 4 * 4


def test_flatten_mapping_keeps_empty_mappings_and_lists() -> None:
    assert trees.flatten_mapping({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
