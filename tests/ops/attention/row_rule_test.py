"""The rule of packed rows: causal text, bidirectional vision, closed examples, trees; and of whole blocks of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sttts_jax.ops.attention.row_rule import (
    NO_KEY,
    NO_QUERY,
    RowRule,
    block_extremes,
    block_meets,
    mask_rows,
    pack_rule,
)


def make_rule(vision: list[int], example: list[int], segment: list[int] | None = None) -> RowRule:
    arrays = [jnp.asarray([x]) for x in (vision, example, segment or [0] * len(vision))]
    return RowRule.of(arrays[0] > 0, *arrays[1:])


def _allowed(rule: RowRule) -> dict[int, set[int]]:
    return {q: set(np.flatnonzero(row).tolist()) for q, row in enumerate(np.asarray(jax.jit(mask_rows)(rule, rule))[0])}


def test_vision_tokens_see_each_other_and_text_stays_causal() -> None:
    rule = make_rule([0, 1, 1, 0, 1, 1, 0], [0] * 7)
    first, frames = {0}, {1, 2, 4, 5}
    assert _allowed(rule) == {
        0: first,
        1: first | frames,
        2: first | frames,
        3: {0, 1, 2, 3},
        4: set(range(6)),
        5: set(range(6)),
        6: set(range(7)),
    }


def test_packed_examples_never_see_each_other() -> None:
    one = _allowed(make_rule([0, 1, 1, 0, 1, 1, 0], [0] * 7))
    two = _allowed(make_rule([0, 1, 1, 0, 1, 1, 0] * 2, [0] * 7 + [1] * 7))
    assert two == {**one, **{q + 7: {k + 7 for k in keys} for q, keys in one.items()}}


def test_branches_of_a_tree_see_the_prefix_and_themselves() -> None:
    allowed = _allowed(make_rule([0] * 7, [0] * 7, [10_000] * 3 + [0, 0, 1, 1]))
    assert allowed[2] == {0, 1, 2}
    assert allowed[4] == {0, 1, 2, 3, 4}
    assert allowed[6] == {0, 1, 2, 5, 6}


def test_padding_sees_nothing_and_is_not_seen() -> None:
    allowed = _allowed(make_rule([1, 0, 0], [0, 0, -1], [0, 0, -1]))
    assert allowed == {0: {0}, 1: {0, 1}, 2: set()}


@pytest.mark.parametrize("seed", range(8))
def test_blocks_that_meet_are_those_with_somebody_to_see(seed: int) -> None:
    """A pair that does not meet hides everything, one that meets as a whole hides nothing; rows end inside blocks."""
    rng = np.random.default_rng(seed)
    sizes, (block_q, block_k) = (37, 50), (8, 16)
    rules = [
        RowRule(
            order=jnp.asarray((rng.permutation(n) if seed % 2 else np.arange(n))[None], jnp.int32),
            vision=jnp.asarray(rng.random((1, n)) < 0.3 * (seed % 4)),
            example=jnp.asarray(
                np.sort(rng.integers(-1, 2, n))[::-1][None] if seed % 3 else np.zeros((1, n)), jnp.int32
            ),
            segment=jnp.asarray(rng.integers(0, 2, (1, n)) * (seed > 4), jnp.int32),
        )
        for n in sizes
    ]
    packed = [pack_rule(rules[0], block_q, NO_QUERY), pack_rule(rules[1], block_k, NO_KEY)]
    some, whole = block_meets(block_extremes(packed[0], block_q), block_extremes(packed[1], block_k))
    mask = np.asarray(mask_rows(*rules))[0]
    mask = np.pad(mask, [(0, -n % block) for n, block in zip(sizes, (block_q, block_k), strict=True)])
    blocks = mask.reshape(mask.shape[0] // block_q, block_q, -1, block_k).swapaxes(1, 2)
    some, whole = np.asarray(some[0]), np.asarray(whole[0])
    assert not blocks[~some].any() and blocks[whole].all()
    assert (some | ~whole).all() and some.any()
