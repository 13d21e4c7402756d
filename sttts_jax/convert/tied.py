"""Whether a checkpoint's output head is its embedding table: told by the numbers, because configs do not say it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sttts_jax.convert.piece import Piece
from sttts_jax.convert.safetensors_files import StoredTensor, read_tensor
from sttts_jax.models.config import VlmConfig

BLOCK_BYTES = 32 * 2**20


def with_tying(
    cfg: VlmConfig,
    listing: Mapping[str, StoredTensor],
    table: Callable[[VlmConfig], Sequence[Piece]],
    absent_is_tied: bool = False,
) -> VlmConfig:
    """`cfg` with llm.tied as the files have it: tied when the head equals the base rows of the embedding bit for bit.

    Molmo2-4B stores such a copy. Files without a head are tied if `cfg` says so, or if `absent_is_tied`.
    """
    tied, untied = (_tied(cfg, value) for value in (True, False))
    head = next(piece for piece in table(untied) if piece.leaf == "llm/head")
    if head.tensor not in listing:
        return tied if absent_is_tied else cfg
    bases = [piece for piece in table(tied) if piece.leaf == "llm/embedding" and not piece.copy]
    copied = any(piece.copy for piece in table(tied))
    if not copied or not all(base.tensor in listing for base in bases):
        return untied
    same = listing[head.tensor].shape == head.stored and all(_equal(listing[head.tensor], listing, b) for b in bases)
    return tied if same else untied


def _tied(cfg: VlmConfig, tied: bool) -> VlmConfig:
    return dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, tied=tied))


def _equal(head: StoredTensor, listing: Mapping[str, StoredTensor], base: Piece) -> bool:
    """Whether a piece of the embedding has the bytes of its rows of the head; ends at the first block that differs."""
    embedding, first = listing[base.tensor], base.index[0].start if base.index else 0
    shift = (base.rows.start if base.rows else 0) - first
    if head.dtype != embedding.dtype or len(embedding.shape) != 2 or head.shape[1] != embedding.shape[1]:
        return False
    if embedding.shape[0] < first + base.shape[0] + shift:
        return False
    size = max(BLOCK_BYTES // (4 * head.shape[1]), 1)
    for start in range(first, first + base.shape[0], size):
        end = min(start + size, first + base.shape[0])
        one = read_tensor(head, slice(start, end)).view(np.uint8)
        other = read_tensor(embedding, slice(start + shift, end + shift)).view(np.uint8)
        if not np.array_equal(one, other):
            return False
    return True
