"""Weighted cross entropy with z-loss, as sums: the caller divides by a weight that is summed over the whole batch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sttts_jax.ops.compact import in_lines, places, set_positions
from sttts_jax.ops.token_moves import channels_to_tokens, tokens_to_channels, whole_rows


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


def cross_entropy_sums(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> LossSums:
    """The plain form: logits [..., Y], targets int [...], weights float [...]; in float32.

    Negative weights count as 0, and targets without weight may hold anything.
    """
    logits = logits.astype(jnp.float32)
    weights = jnp.maximum(weights.astype(jnp.float32), 0.0)
    log_total = jax.nn.logsumexp(logits, axis=-1)  # [...]
    used = weights > 0  # [...]
    # A target without weight may lie outside of the vocabulary.
    chosen = jnp.take_along_axis(logits, jnp.where(used, targets, 0)[..., None], axis=-1)[..., 0]
    return LossSums(
        cross_entropy=jnp.sum(weights * (log_total - chosen)),
        z=jnp.sum(weights * jnp.square(log_total)),
        weight=jnp.sum(weights),
        correct=jnp.sum((used & (jnp.argmax(logits, axis=-1) == targets)).astype(jnp.float32)),
        tokens=jnp.sum(used.astype(jnp.float32)),
    )


def head_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk: int = 256
) -> LossSums:
    """Cross entropy of hidden states [B, S, E] under a head [Y, E], targets and weights [B, S].

    Only positions with weight meet the head, `chunk` of a row at a time: the loop ends with the longest row's last one,
    so a row of many vision tokens and a short answer costs one chunk. Both passes make the logits, B x chunk x Y of
    them at a time. Products in hidden.dtype with float32 accumulation, the rest in float32. No gradient to weights.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be a positive number of positions.")
    chunk = min(chunk, hidden.shape[1])
    # Positions with weight, each row's by itself; those after the last one stand for nothing and have no weight.
    used = weights > 0  # [B, S]
    lines = in_lines(used)  # [B, n, m]
    padded = hidden.shape[1] + -hidden.shape[1] % chunk  # n * chunk
    order = jax.vmap(lambda row: set_positions(row, padded))(lines)  # [B, n * chunk]
    weights = jnp.take_along_axis(weights, order, axis=1, mode="fill", fill_value=0)  # and targets likewise
    targets = jnp.take_along_axis(targets, order, axis=1, mode="clip")
    back = places(lines).reshape(used.shape[0], -1)[:, : used.shape[1]]  # [B, S], where a position went
    longest = jnp.max(jnp.sum(used, axis=1))  # row
    plan = _Chunks(order, targets, weights.astype(jnp.float32), jnp.where(used, back, padded), -(-longest // chunk))
    return _head_loss(tokens_to_channels(hidden), head, plan, chunk)


class _Chunks(NamedTuple):
    """Positions int32 [B, n * chunk] in the order in which they meet the head, S or more for none, their targets and
    weights; where each position [B, S] went, n * chunk if it has no weight; and how many chunks have any weight."""

    order: jax.Array
    targets: jax.Array
    weights: jax.Array
    back: jax.Array
    chunks: jax.Array

    def part(self, i: jax.Array, hidden: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """hidden [B, chunk, E], targets and weights [B, chunk] of chunk i."""
        cut = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in self[:3])
        order, targets, weights = map(whole_rows, cut)
        return channels_to_tokens(_take(hidden, order)), targets, weights


# Zeros for an index beyond the end. Rows of a batch each by itself: on a mesh, no row leaves its device.
_take = jax.vmap(lambda x, index: jnp.take(x, index, axis=0, mode="fill", fill_value=0))


def _logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    return jnp.einsum("bse,ye->bsy", hidden, head, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _head_loss(hidden: jax.Array, head: jax.Array, plan: _Chunks, chunk: int) -> LossSums:
    table = head.astype(hidden.dtype)

    def add(i: jax.Array, sums: LossSums) -> LossSums:
        states, targets, weights = plan.part(i, hidden, chunk)  # [B, chunk, E], [B, chunk] twice
        return jax.tree.map(jnp.add, sums, cross_entropy_sums(_logits(states, table), targets, weights))

    zero = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
    return jax.lax.fori_loop(0, plan.chunks, add, zero)


def _head_loss_fwd(hidden: jax.Array, head: jax.Array, plan: _Chunks, chunk: int) -> tuple[LossSums, tuple]:
    return _head_loss(hidden, head, plan, chunk), (hidden, head, plan)


def _head_loss_bwd(chunk: int, saved: tuple, g: LossSums) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, plan = saved
    table = head.astype(hidden.dtype)

    def add(i: jax.Array, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dhidden, dhead = grads
        states, targets, weights = plan.part(i, hidden, chunk)
        logits = _logits(states, table)  # [B, chunk, Y]
        log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [B, chunk, 1]
        chosen = jnp.arange(logits.shape[-1]) == targets[..., None]  # [B, chunk, Y]
        # d logsumexp = softmax, d logsumexp^2 = 2 logsumexp softmax
        slope = (g.cross_entropy + 2 * g.z * log_total) * jnp.exp(logits - log_total) - g.cross_entropy * chosen
        slope = (weights[..., None] * slope).astype(hidden.dtype)  # [B, chunk, Y]
        part = jnp.einsum("bsy,ye->bse", slope, table, preferred_element_type=jnp.float32).astype(hidden.dtype)
        part = tokens_to_channels(part)
        dhidden = jax.lax.dynamic_update_slice_in_dim(dhidden, part, i * chunk, axis=1)  # [B, n * chunk, E], in order
        return dhidden, dhead + jnp.einsum("bsy,bse->ye", slope, states, preferred_element_type=jnp.float32)

    batch, _, width = hidden.shape
    zero = jnp.zeros((batch, plan.order.shape[1], width), hidden.dtype), jnp.zeros(head.shape, jnp.float32)
    dhidden, dhead = jax.lax.fori_loop(0, plan.chunks, add, zero)
    # A gather, where the gradient of one would scatter.
    return _take(dhidden, plan.back), dhead.astype(head.dtype), None


_head_loss.defvjp(_head_loss_fwd, _head_loss_bwd)
