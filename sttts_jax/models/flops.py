"""How much a row costs and how big a model is, by arithmetic alone: no array, no device.

FLOPs are those of matrix products, 2 per multiply-add, for one forward pass; norms and softmax are left out. Only
pairs that the attention mask allows count, so that a kernel that computes more than it needs does not look faster.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig


@dataclasses.dataclass(frozen=True)
class RowFlops:
    """Forward FLOPs of one packed row by part."""

    vit_head: float
    scorer: float
    vit_tail: float
    connector: float
    llm: float
    llm_head: float

    @property
    def total(self) -> float:
        """All parts together."""
        return float(sum(dataclasses.astuple(self)))


def train_factor(remat: str) -> int:
    """Training cost over a forward pass: backward is two more, and making all matrix products again is one more.

    `remat` is a name of `ops.remat`: "attention" keeps no product but those of the kernels.
    """
    return 4 if remat in ("attention", "full") else 3


def vit_block_flops(cfg: VitConfig, tokens: float, pairs: float) -> float:
    """One block on `tokens` patches with `pairs` (query, key) pairs."""
    heads = cfg.heads * cfg.head_dim
    return 2 * tokens * (4 * cfg.width * heads + 2 * cfg.width * cfg.mlp) + 4 * pairs * heads


def patch_embedding_flops(cfg: VitConfig, frames: int) -> float:
    """The projection of pixels to patches."""
    return 2 * frames * cfg.patches * 3 * cfg.patch**2 * cfg.width


def vit_flops(cfg: VitConfig, frames: int, kept_cells: Sequence[float] | None) -> tuple[float, float, float]:
    """(blocks before the drop and patch embedding, scorer, blocks after the drop).

    `kept_cells`: surviving cells of each frame, None without pruning (then scorer and tail are 0).
    """
    full = vit_block_flops(cfg, frames * cfg.patches, frames * cfg.patches**2)
    embedding = patch_embedding_flops(cfg, frames)
    if kept_cells is None:
        return embedding + cfg.layers * full, 0.0, 0.0
    patches = np.asarray(kept_cells, np.float64) * cfg.window
    tail = vit_block_flops(cfg, float(patches.sum()), float(np.square(patches).sum()))
    return embedding + cfg.head_layers * full, scorer_flops(cfg, frames), (cfg.layers - cfg.head_layers) * tail


def scorer_flops(cfg: VitConfig, frames: int) -> float:
    """Attention pooling of every cell, then the MLP on pairs of frames (STTS)."""
    mlp = 2 * cfg.width * cfg.mlp + cfg.mlp**2 + cfg.mlp
    pool = _pool_flops(cfg.window, cfg.width, cfg.heads * cfg.head_dim, cfg.width)
    return frames * cfg.cells * (pool + 2 * mlp)


def _pool_flops(window: int, channels: int, heads: int, out: int) -> float:
    """One mean query over a window: q, k, v, two products with the window, output projection."""
    return 2 * channels * heads * (1 + 2 * window) + 4 * window * heads + 2 * heads * out


def connector_flops(cfg: ConnectorConfig, channels: int, out_width: int, windows: float, window: int) -> float:
    """Pooling and projection of `windows` windows of `window` patches with `channels` features."""
    pool = _pool_flops(window, channels, cfg.heads * cfg.head_dim, cfg.width)
    return windows * (pool + 2 * (2 * cfg.width * cfg.mlp + cfg.mlp * out_width))


def llm_flops(cfg: LlmConfig, tokens: float, pairs: float) -> float:
    """All blocks, without the head, on `tokens` tokens with `pairs` allowed (query, key) pairs."""
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    dense = cfg.width * (2 * q + 2 * kv + 3 * cfg.mlp)
    return cfg.layers * (2 * tokens * dense + 4 * pairs * q)


def head_flops(cfg: LlmConfig, tokens: float) -> float:
    """Logits of `tokens` tokens."""
    return 2 * tokens * cfg.width * cfg.vocab


def example_pairs(tokens: int, vision: int = 0) -> int:
    """Allowed pairs of one example without message trees: the causal half, and vision tokens also see later ones."""
    return (tokens * (tokens + 1) + vision * (vision - 1)) // 2


def row_flops(
    cfg: VlmConfig,
    *,
    frames: int,
    kept_cells: Sequence[float] | None,
    tokens: float,
    pairs: float,
    loss_tokens: float,
) -> RowFlops:
    """Forward FLOPs of one packed row.

    frames: real frames; kept_cells: survivors of each frame (None: no pruning); tokens: real tokens of the row after
    pruning; pairs: from `example_pairs`; loss_tokens: positions that go through the head.
    """
    windows = frames * cfg.vit.cells if kept_cells is None else float(np.sum(kept_cells))
    head, scorer, tail = vit_flops(cfg.vit, frames, kept_cells)
    return RowFlops(
        vit_head=head,
        scorer=scorer,
        vit_tail=tail,
        connector=connector_flops(cfg.connector, cfg.vit.feature_width, cfg.llm.width, windows, cfg.vit.window),
        llm=llm_flops(cfg.llm, tokens, pairs),
        llm_head=head_flops(cfg.llm, loss_tokens),
    )


def llm_parameters(cfg: LlmConfig) -> int:
    """Parameters of the language model with its own head if it has one."""
    q, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    norms = 2 * cfg.width + (2 * cfg.head_dim if cfg.qk_norm == "head" else q + kv)
    block = cfg.width * (2 * q + 2 * kv + 3 * cfg.mlp) + norms
    tables = cfg.vocab * (1 if cfg.tied else 2) + cfg.extra_vocab
    return cfg.layers * block + tables * cfg.width + cfg.width


def connector_parameters(cfg: ConnectorConfig, channels: int, out_width: int) -> int:
    """Parameters of pooling and projector."""
    heads = cfg.heads * cfg.head_dim
    pool = 3 * (channels + 1) * heads + (heads + 1) * cfg.width
    return pool + 2 * cfg.width * cfg.mlp + cfg.mlp * out_width


def vit_parameters(cfg: VitConfig) -> int:
    """Parameters of the vision transformer without the scorer."""
    heads = cfg.heads * cfg.head_dim
    attention = 3 * (cfg.width + 1) * heads + (heads + 1) * cfg.width
    mlp = (cfg.width + 1) * cfg.mlp + (cfg.mlp + 1) * cfg.width
    embedding = (3 * cfg.patch**2 + 1 + cfg.patches) * cfg.width
    return cfg.layers * (attention + mlp + 4 * cfg.width) + embedding


def scorer_parameters(cfg: VitConfig) -> int:
    """Parameters of the scorer (STTS): pooler, then 2D -> M -> M -> 1."""
    heads = cfg.heads * cfg.head_dim
    pool = 3 * (cfg.width + 1) * heads + (heads + 1) * cfg.width
    return pool + (2 * cfg.width + 1) * cfg.mlp + (cfg.mlp + 1) * cfg.mlp + cfg.mlp + 1


def parameter_counts(cfg: VlmConfig) -> dict[str, int]:
    """Parameters by part: vit, scorer, connector, llm, and lora (what it adds to vit and llm) if there is any."""
    counts = {
        "vit": vit_parameters(cfg.vit),
        "scorer": scorer_parameters(cfg.vit),
        "connector": connector_parameters(cfg.connector, cfg.vit.feature_width, cfg.llm.width),
        "llm": llm_parameters(cfg.llm),
    }
    return counts if cfg.lora is None else {**counts, "lora": lora_parameters(cfg)}


def lora_parameters(cfg: VlmConfig) -> int:
    """Parameters of the low-rank factors: rank times both sides of every target."""
    if cfg.lora is None:
        return 0
    sizes = cfg.projections
    targets = [sizes[name] for name in sizes if cfg.lora.adapts(name)]
    return sum(layers * cfg.lora.rank * (inputs + outputs) for layers, inputs, outputs in targets)
