"""Rope: rotation of pairs, dependence on distance alone, and YaRN's two limits."""

import math

import jax.numpy as jnp
import numpy as np

from sttts_jax.ops.rope import apply_rope, rope_frequencies, rope_tables, yarn_frequencies

OLMO3 = {"factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_length": 8192}


def test_it_rotates_the_pair_i_and_i_plus_half() -> None:
    frequencies = rope_frequencies(4, 10_000.0)
    np.testing.assert_allclose(frequencies, [1.0, 0.01], rtol=1e-6)
    x = jnp.asarray([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
    got = apply_rope(x, *rope_tables(jnp.asarray([[3]]), frequencies))[0, 0, 0]
    want = [math.cos(3), -2 * math.sin(0.03), math.sin(3), 2 * math.cos(0.03)]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_products_depend_on_the_distance_alone() -> None:
    q, k = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 1, 1, 16)), jnp.float32)
    frequencies = rope_frequencies(16, 10_000.0)

    def product(at_q: int, at_k: int) -> float:
        rotated = [apply_rope(x, *rope_tables(jnp.asarray([[at]]), frequencies)) for x, at in ((q, at_q), (k, at_k))]
        return float(jnp.sum(rotated[0] * rotated[1]))

    np.testing.assert_allclose(product(7, 3), product(104, 100), atol=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3


def test_yarn_keeps_fast_dimensions_and_slows_the_others() -> None:
    plain, scaled = rope_frequencies(128, 500_000.0), yarn_frequencies(128, 500_000.0, **OLMO3)
    ratio = plain / scaled
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.8], 8.0, rtol=1e-6)
    assert (np.diff(ratio) >= -1e-6).all()


def test_yarn_of_factor_one_is_plain() -> None:
    same = yarn_frequencies(64, 10_000.0, **{**OLMO3, "factor": 1.0})
    np.testing.assert_allclose(same, rope_frequencies(64, 10_000.0), rtol=1e-6)


def test_tables_carry_the_attention_factor() -> None:
    cos, sin = rope_tables(jnp.arange(5), rope_frequencies(8, 10_000.0), 1.2)
    np.testing.assert_allclose(cos**2 + sin**2, 1.44, rtol=1e-5)
