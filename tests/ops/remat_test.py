"""Remat policies have names that a config can hold, and unknown ones are refused."""

import jax
import jax.numpy as jnp
import pytest

from sttts_jax.ops.attention.frames_cpu import attend_stream_cpu, plan_stream_cpu
from sttts_jax.ops.remat import remat_policy


def test_names() -> None:
    assert remat_policy("none") is None
    assert remat_policy("dots") is jax.checkpoint_policies.dots_saveable
    assert remat_policy("attention") is not None
    assert remat_policy("full") is jax.checkpoint_policies.nothing_saveable


@pytest.mark.parametrize("name", ["all", "nothing_saveable", "dots_no_batch", ""])
def test_other_names_are_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match="use one of none, dots, attention, full"):
        remat_policy(name)


@pytest.mark.optimized
@pytest.mark.parametrize(("policy", "loops"), [("none", 2), ("attention", 2), ("full", 3)])
def test_the_attention_policy_runs_the_forward_kernel_once(policy: str, loops: int) -> None:
    """Everything else of the layer is made again; the kernel is one loop a pass."""
    plan = plan_stream_cpu(jnp.arange(128)[None] // 64, None, frames=2, max_segment=64)

    def layer(x: jax.Array) -> jax.Array:
        qkv = jnp.sin(x)[:, :, None, None, :] * jnp.ones((3, 2, 1))
        return jnp.sin(attend_stream_cpu(qkv, plan)).sum((2, 3))[..., None] * x

    keep = remat_policy(policy)
    layer = layer if keep is None else jax.checkpoint(layer, policy=keep)
    gradient = jax.jit(jax.value_and_grad(lambda x: layer(x).sum()))
    assert gradient.lower(jnp.ones((1, 128, 8))).compile().as_text().count(" while(") == loops
