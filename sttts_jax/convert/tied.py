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
    copies = [piece for piece in table(tied) if piece.copy]
    base = next(piece for piece in table(tied) if piece.leaf == "llm/embedding" and not piece.copy)
    if not copies or base.tensor not in listing:
        return untied
    return tied if _equal(listing[head.tensor], listing[base.tensor], cfg.llm.vocab) else untied


def _tied(cfg: VlmConfig, tied: bool) -> VlmConfig:
    return dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, tied=tied))


def _equal(head: StoredTensor, embedding: StoredTensor, rows: int) -> bool:
    """Whether the first rows are the same bytes; ends at the first block that differs."""
    if head.dtype != embedding.dtype or len(head.shape) != 2 or head.shape[1:] != embedding.shape[1:]:
        return False
    if head.shape[0] != rows or embedding.shape[0] < rows:
        return False
    size = max(BLOCK_BYTES // (4 * head.shape[1]), 1)
    for first in range(0, rows, size):
        block = slice(first, min(first + size, rows))
        one, other = (read_tensor(tensor, block).view(np.uint8) for tensor in (head, embedding))
        if not np.array_equal(one, other):
            return False
    return True
