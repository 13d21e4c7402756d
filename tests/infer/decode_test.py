"""How tokens are chosen, without a model; what the loops make of it is tested where they are."""

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.infer.decode import SamplerState, begin, sample_tokens


def test_sampling_follows_the_distribution_and_top_p_cuts_it() -> None:
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.1, 0.5, 0.15, 0.25])), (4000, 4))

    def shares(temperature: float, top_p: float) -> np.ndarray:
        tokens = sample_tokens(jax.random.key(0), logits, jnp.float32(temperature), jnp.float32(top_p))
        return np.bincount(np.asarray(tokens), minlength=4) / 4000

    np.testing.assert_allclose(shares(1.0, 1.0), [0.1, 0.5, 0.15, 0.25], atol=0.03)
    np.testing.assert_allclose(shares(1.0, 0.6), [0.0, 2 / 3, 0.0, 1 / 3], atol=0.03)
    squared = np.asarray([0.01, 0.25, 0.0225, 0.0625])
    np.testing.assert_allclose(shares(0.5, 1.0), squared / squared.sum(), atol=0.03)


def test_the_first_token_of_batches_and_of_questions() -> None:
    logits = jax.random.normal(jax.random.key(1), (2, 3, 7))  # [B, Q, Y]
    likeliest = np.argmax(logits, axis=-1)
    state = begin(logits, jnp.zeros((2, 3), jnp.int32), None, (int(likeliest[0, 1]),))
    np.testing.assert_array_equal(state.token, likeliest)
    np.testing.assert_array_equal(state.finished, likeliest == likeliest[0, 1])
    assert int(state.step) == 1
    assert not begin(logits[0], jnp.zeros(3, jnp.int32), None, ()).finished.any()  # without stop tokens nothing stops
    sampler = SamplerState(jax.random.key(2), jnp.float32(1), jnp.float32(1e-6))
    drawn = begin(logits, jnp.zeros((2, 3), jnp.int32), None, (), sampler)
    np.testing.assert_array_equal(drawn.token, likeliest)  # so small a share leaves the likeliest alone
