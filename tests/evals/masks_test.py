"""Masks as text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.evals.masks import pack_mask, unpack_mask


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_masks_survive_packing(bits: list[bool]) -> None:
    mask = np.asarray(bits).reshape(-1, 1)
    assert np.array_equal(unpack_mask(pack_mask(mask), mask.shape), mask)
