"""The four moves of a row whose tokens lie over the mesh axis `sequence`: what needs the tokens of a whole row splits
something else meanwhile, heads or channels, so that no device does work or holds arrays for another.

Each is an all-to-all over `sequence`, its gradient the opposite one, and nothing on a mesh without that axis. What is
one number a token or a cell (scores, survivors, rules) every device of a row has whole.
"""

import jax

from sttts_jax import dims
from sttts_jax.sharding import constrain, moved


def tokens_to_heads(x: jax.Array) -> jax.Array:
    """x [B, tokens, .., H, d], every device's tokens -> its heads of all tokens."""
    return moved(x, *_by_tokens_and_heads(x))


def heads_to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of `tokens_to_heads`."""
    by_tokens, by_heads = _by_tokens_and_heads(x)
    return moved(x, by_heads, by_tokens)


def tokens_to_channels(x: jax.Array) -> jax.Array:
    """x [B, tokens, .., D], every device's tokens -> its channels of all tokens."""
    return moved(x, *_by_tokens_and_channels(x))


def channels_to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of `tokens_to_channels`."""
    by_tokens, by_channels = _by_tokens_and_channels(x)
    return moved(x, by_channels, by_tokens)


def whole_rows(x: jax.Array) -> jax.Array:
    """x [B, tokens, ..], small, with all tokens of a row on each of its devices."""
    return constrain(x, dims.ACT_BATCH, *[None] * (x.ndim - 1))


_Names = tuple[str | None, ...]


def _by_tokens_and_heads(x: jax.Array) -> tuple[_Names, _Names]:
    between = (None,) * (x.ndim - 4)
    heads = (dims.ACT_HEADS, dims.ACT_HEAD_DIM)
    return (dims.ACT_BATCH, dims.ACT_LENGTH, *between, *heads), (dims.ACT_BATCH, None, *between, *heads)


def _by_tokens_and_channels(x: jax.Array) -> tuple[_Names, _Names]:
    between = (None,) * (x.ndim - 3)
    by_tokens = (dims.ACT_BATCH, dims.ACT_LENGTH, *between, None)
    return by_tokens, (dims.ACT_BATCH, None, *between, dims.ACT_CHANNELS)
