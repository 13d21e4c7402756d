"""Columns are as wide as their longest cell, and no line ends in spaces."""

from sttts_jax.text_table import text_table


def test_columns_are_aligned() -> None:
    assert text_table(("leaf", "MiB"), [("vit/w", 12.5), ("b", "")]) == "leaf   MiB\nvit/w  12.5\nb"


def test_a_header_alone() -> None:
    assert text_table(("a", "b"), []) == "a  b"
