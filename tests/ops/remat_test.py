"""Remat policies have names that a config can hold, and unknown ones are refused."""

import jax
import pytest

from sttts_jax.ops.remat import remat_policy


def test_names() -> None:
    assert remat_policy("none") is None
    assert remat_policy("full") is jax.checkpoint_policies.nothing_saveable
    assert remat_policy("dots") is jax.checkpoint_policies.dots_saveable
    assert remat_policy("dots_no_batch") is jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    assert remat_policy("everything_saveable") is jax.checkpoint_policies.everything_saveable


@pytest.mark.parametrize("name", ["all", "save_only_these_names", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use 'none' or one of"):
        remat_policy(name)
