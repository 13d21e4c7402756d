"""Rows of the language model: drop the tokens of pruned cells, close the gaps, and find each token's visual row.

The host lays a row out as if nothing were pruned (U tokens, one <im_patch> a cell), because which cells live is only
known here; how many live was known there, so the pruned length S is static.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.compact import in_lines, set_positions
from sttts_jax.pruning.select import Kept


class PrunedRows(NamedTuple):
    """Rows after the drop, all [B, S]; padding has example -1, weight 0 and no visual row.

    tokens, targets int32; weights float32; positions int32; rule as in `ops.attention`
    visual   int32 [B, S]    row of the visual features that is added to the token, X for text
    inverse  int32 [B, X]    the token of each visual row, S if it has none
    """

    tokens: jax.Array
    targets: jax.Array
    weights: jax.Array
    positions: jax.Array
    rule: RowRule
    visual: jax.Array
    inverse: jax.Array


def prune_rows(batch: dict[str, jax.Array], kept: Kept, length: int, positions: str, extra: int = 0) -> PrunedRows:
    """batch: fields [B, U] of the data contract; `length` S; `positions` "dense" or "original"; `extra` P windows.

    `cells` of a token: f * C + c for a video cell, F * C + p for pooled image window p, -1 for text. Row p follows the
    K kept cells.
    """
    fields = {
        name: batch[name]
        for name in ("tokens", "targets", "weights", "cells", "vision", "example", "segment", "position")
    }
    return jax.vmap(lambda f, k: _prune_row(f, k, length, positions, extra))(fields, kept)


def _prune_row(row: dict[str, jax.Array], kept: Kept, length: int, positions: str, extra: int) -> PrunedRows:
    cells, capacity = kept.inverse.shape[0], kept.ids.shape[0]  # F*C, K
    visual_rows = capacity + extra  # X
    # Visual row of every token before the drop: kept cells, then image windows; dropped cells and text have none.
    cell = row["cells"]  # [U]
    stream = jnp.take(kept.inverse, jnp.clip(cell, 0, cells - 1))  # [U]
    of_video = jnp.where((cell >= 0) & (stream < capacity), stream, visual_rows)  # [U]
    visual = jnp.where(cell >= cells, capacity + cell - cells, of_video)  # [U]
    real = row["example"] >= 0  # [U]
    alive = real & ((cell < 0) | (visual < visual_rows))  # [U]

    place = set_positions(in_lines(alive), length)  # [S], U or more for padding

    def take(x: jax.Array, fill: int) -> jax.Array:
        return jnp.take(x, place, mode="fill", fill_value=fill)  # [U] -> [S]

    position = row["position"]  # [U]
    if positions == "dense":
        position = position - _dropped_before(real & ~alive, row["example"])
    example, visual = take(row["example"], -1), take(visual, visual_rows)
    rule = RowRule.of(take(row["vision"], False), example, take(row["segment"], -1))
    # The inverse of `visual`, without a scatter: tokens sorted by visual row, and where each row's stands among them.
    owner, token = jax.lax.sort((visual, jnp.arange(length, dtype=jnp.int32)), num_keys=1, is_stable=False)  # [S] each
    start = jnp.searchsorted(owner, jnp.arange(visual_rows, dtype=jnp.int32))  # [X]
    found = jnp.take(owner, start, mode="fill", fill_value=-1) == jnp.arange(visual_rows)  # [X]
    inverse = jnp.where(found, jnp.take(token, start, mode="clip"), length)  # [X]
    return PrunedRows(
        take(row["tokens"], 0),
        take(row["targets"], 0),
        take(row["weights"], 0),
        take(position, 0),
        rule,
        visual,
        inverse,
    )


def _dropped_before(dropped: jax.Array, example: jax.Array) -> jax.Array:
    """int32 [U]: dropped tokens of the same example before each token; `dropped` bool and `example` int32 [U].

    Cells stand in the prefix of a message tree, so every branch closes up alike.
    """
    total = jnp.cumsum(dropped, dtype=jnp.int32)  # [U]
    before = total - dropped  # [U], of all examples
    start = jnp.diff(example, prepend=-2) != 0  # [U], the first token of each example
    return before - jax.lax.cummax(jnp.where(start, before, 0))
