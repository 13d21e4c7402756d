"""What the arithmetic allows: FLOPs of exactly the shapes that are timed, with attention counted frame by frame."""

import numpy as np

from sttts_jax.models import flops
from sttts_jax.models.config import LlmConfig, VitConfig, VlmConfig

SCOPES = ("layer", "tail", "tower")
PASSES = ("forward", "train")
BACKWARD = 2  # passes worth of products: one for the inputs, one for the weights


def scope_flops(scope: str, vit: VitConfig, counts: np.ndarray | None, frames: int, batch: int) -> float:
    """Forward FLOPs of `batch` rows; `counts` [B, F] survivors of every frame, None for the unpruned model."""
    return sum(_parts(scope, vit, counts, frames, batch))


def pass_flops(
    what: str, scope: str, vit: VitConfig, counts: np.ndarray | None, frames: int, batch: int, remat: str
) -> float:
    """FLOPs of one pass ("forward" or "train"), recomputation by `remat` included.

    Training is 3 (with full rematerialisation 4) forward passes of the blocks and 3 of the scorer. The patch embedding
    is 2: pixels need no gradient.
    """
    embedding, blocks, scorer = _parts(scope, vit, counts, frames, batch)
    if what == "forward":
        return embedding + blocks + scorer
    return embedding * BACKWARD + blocks * flops.train_factor(remat) + scorer * (1 + BACKWARD)


def _parts(
    scope: str, vit: VitConfig, counts: np.ndarray | None, frames: int, batch: int
) -> tuple[float, float, float]:
    """(patch embedding, blocks, scorer)."""
    if scope not in SCOPES:
        raise ValueError(f"no scope is called {scope!r}; use one of {', '.join(SCOPES)}")
    if scope == "tower":
        rows = [None] * batch if counts is None else list(counts)
        embedding = batch * flops.patch_embedding_flops(vit, frames)
        head, scorer, tail = np.sum([flops.vit_flops(vit, frames, row) for row in rows], axis=0)
        return embedding, float(head + tail - embedding), float(scorer)
    patches = vit.window * (np.full((batch, frames), vit.cells) if counts is None else np.asarray(counts))
    block = flops.vit_block_flops(vit, float(patches.sum()), float(np.square(patches, dtype=np.float64).sum()))
    return 0.0, block * (1 if scope == "layer" else vit.layers - vit.prune_after - 2), 0.0


def row_pass_flops(what: str, vlm: VlmConfig, parts: flops.RowFlops, frames: int, remat: str) -> float:
    """FLOPs of one pass of a row whose parts `models.flops.row_flops` counted; recomputation of blocks included.

    Training is that of `pass_flops`; connector and logits are 3 forward passes. That the head and attention are
    recomputed to save memory is their kernels' choice, and does not count.
    """
    if what == "forward":
        return parts.total
    embedding = flops.patch_embedding_flops(vlm.vit, frames)
    blocks = parts.vit_head - embedding + parts.vit_tail + parts.llm
    once = parts.scorer + parts.connector + parts.llm_head
    return embedding * BACKWARD + blocks * flops.train_factor(remat) + once * (1 + BACKWARD)


def decode_flops(llm: LlmConfig, rows: int, context: float) -> float:
    """FLOPs of one new token in each of `rows` rows that hold `context` tokens, itself included."""
    return flops.llm_flops(llm, rows, rows * context) + flops.head_flops(llm, rows)


def decode_bytes(llm: LlmConfig, rows: int, context: float, itemsize: int) -> float:
    """Bytes that one new token in each of `rows` rows has to read: all weights once, keys and values of `context`.

    This is what bounds decoding: each weight serves `rows` multiply-adds, too few to keep any device computing.
    """
    tables = llm.extra_vocab + (0 if llm.tied else llm.vocab)  # of an embedding only one line a row is read
    weights = flops.llm_parameters(llm) - tables * llm.width
    return itemsize * (weights + rows * context * 2 * llm.layers * llm.kv_heads * llm.head_dim)
