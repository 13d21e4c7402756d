"""Weighted cross entropy with z-loss, as sums: the caller divides by a weight that is summed over the whole batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
    """Sums over tokens, float32 scalars; add those of several batches, then divide.

    cross_entropy  sum of w * (logsumexp - logit of the target)
    z              sum of w * logsumexp^2, without a coefficient
    weight         sum of w
    correct        number of tokens with w > 0 whose largest logit is the target
    tokens         number of tokens with w > 0
    """

    cross_entropy: jax.Array
    z: jax.Array
    weight: jax.Array
    correct: jax.Array
    tokens: jax.Array

    def mean(self, z_coefficient: float = 0.0) -> jax.Array:
        """(cross_entropy + z_coefficient * z) / weight; 0 where nothing carries weight."""
        total = self.cross_entropy + z_coefficient * self.z
        return total / jnp.where(self.weight > 0, self.weight, 1.0)


def cross_entropy_sums(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSums:
    """The plain form: logits [..., Y], targets int [...], weights float [...]; in float32.

    Negative weights count as 0, and targets without weight may hold anything.
    """
    logits = logits.astype(jnp.float32)
    weights = jnp.maximum(weights.astype(jnp.float32), 0.0)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    used = weights > 0
    chosen = jnp.take_along_axis(logits, jnp.where(used, targets, 0)[..., None], axis=-1)[..., 0]
    return LossSums(
        cross_entropy=jnp.sum(weights * (log_total - chosen)),
        z=jnp.sum(weights * jnp.square(log_total)),
        weight=jnp.sum(weights),
        correct=jnp.sum((used & (jnp.argmax(logits, axis=-1) == targets)).astype(jnp.float32)),
        tokens=jnp.sum(used.astype(jnp.float32)),
    )


def head_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk: int = 512
) -> LossSums:
    """Cross entropy of hidden states [B, S, E] under a head [Y, E], targets and weights [B, S].

    Goes through S in chunks and recomputes each in the backward pass, so that B x chunk x Y logits live at a time
    instead of B x S x Y. Products in hidden.dtype with float32 accumulation, the rest in float32.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be a positive number of positions.")

    def part(hidden_i: jax.Array, targets_i: jax.Array, weights_i: jax.Array) -> LossSums:
        # The cast is inside the loop so that the head's gradient adds up over chunks in the dtype of the head.
        table = head.astype(hidden_i.dtype)
        logits = jnp.einsum("bse,ye->bsy", hidden_i, table, preferred_element_type=jnp.float32)
        return cross_entropy_sums(logits, targets_i, weights_i)

    length = hidden.shape[1]
    if length <= chunk:
        return part(hidden, targets, weights)
    count = -(-length // chunk)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)

    remat = jax.checkpoint(part, prevent_cse=False)
    zero = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))

    def step(sums: LossSums, chunk_inputs: tuple[jax.Array, ...]) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, sums, remat(*chunk_inputs)), None

    return jax.lax.scan(step, zero, (split(hidden), split(targets), split(weights)))[0]
