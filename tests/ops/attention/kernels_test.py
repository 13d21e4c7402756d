"""Which attention kernels a program gets, by the platform and by name."""

from typing import Any

import jax.numpy as jnp
import pytest

from sttts_jax.ops.attention.kernels import choose_kernels


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "patches", "kernels"),
    [
        ("auto", "tpu", jnp.float32, 36, "tpu"),
        ("auto", "gpu", jnp.bfloat16, 36, "gpu"),
        ("auto", "gpu", jnp.float32, 729, "xla"),
        ("auto", "cpu", jnp.float32, 729, "cpu"),
        ("auto", "cpu", jnp.float32, 36, "xla"),
        ("cpu", "cpu", jnp.float32, 36, "cpu"),
        ("xla", "tpu", jnp.bfloat16, 729, "xla"),
    ],
)
def test_kernels_follow_the_platform_unless_they_are_named(
    name: str, platform: str, dtype: Any, patches: int, kernels: str
) -> None:
    assert choose_kernels(name, platform, dtype, patches) == kernels


def test_kernels_of_another_platform_are_refused() -> None:
    with pytest.raises(ValueError, match="does not run on cpu; choose 'auto' or 'xla'"):
        choose_kernels("tpu", "cpu", jnp.bfloat16, 729)
    with pytest.raises(ValueError, match="no attention kernels are called 'flash'"):
        choose_kernels("flash", "tpu", jnp.bfloat16, 729)
    with pytest.raises(ValueError, match="wants dtype bfloat16"):
        choose_kernels("gpu", "gpu", jnp.float32, 729)
