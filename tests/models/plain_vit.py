"""The ViT as the papers write it: layer after layer on whole frames, dropped keys masked, nothing packed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sttts_jax.models.config import VitConfig, cuts, stack_name
from sttts_jax.pruning.bias import soft_bias
from sttts_jax.pruning.cells import CellGrid
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.scorer import Scorer


def layers(params: Any, cfg: VitConfig) -> list[Any]:
    """The parameters of each block, sliced from the stacks; blocks after the last feature layer have none."""
    return [
        jax.tree.map(lambda x, i=i: x[i], params[stack_name(first, end)])
        for first, end in cuts(cfg)
        for i in range(end - first)
        if first <= max(cfg.feature_layers)
    ]


def _norm(p: Any, x: jax.Array, eps: float) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def _block(p: Any, x: jax.Array, key_logits: jax.Array, cfg: VitConfig) -> jax.Array:
    """x [T, N, D]; key_logits [T, N] are added to the attention logits of every query and head."""
    qkv = jnp.einsum("tnd,dihk->itnhk", _norm(p["norm1"], x, cfg.norm_eps), p["qkv"]["kernel"])
    q, k, v = qkv + p["qkv"]["bias"][:, None, None]
    logits = jnp.einsum("tqhk,tnhk->thqn", q, k) / jnp.sqrt(cfg.head_dim) + key_logits[:, None, None, :]
    heads = jnp.einsum("thqn,tnhk->tqhk", jax.nn.softmax(logits, axis=-1), v)
    x = x + jnp.einsum("tnhk,hkd->tnd", heads, p["out"]["kernel"]) + p["out"]["bias"]
    y = _norm(p["norm2"], x, cfg.norm_eps) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    return x + jax.nn.gelu(y, approximate=True) @ p["fc2"]["kernel"] + p["fc2"]["bias"]


class Plain(NamedTuple):
    """features [B, F, C, W, taps * D], zero where nothing is; logits of the scorer [B, F, C], and the cells it read."""

    features: jax.Array
    logits: jax.Array
    scored: jax.Array


def plain_vit(
    cfg: VitConfig, prune: PruneConfig, params: Any, patches: jax.Array, rows: FrameRows, mask: jax.Array
) -> Plain:
    """patches [B, F, C, W, P], survivors `mask` bool [B, F, C]."""
    grid, blocks = cfg.cell_grid, layers(params, cfg)
    batch, frames = rows.item.shape
    flat = grid.to_patches(patches).reshape(batch * frames, grid.patches, -1)
    x = flat @ params["patch_embedding"]["kernel"] + params["patch_embedding"]["bias"] + params["position_embedding"]
    of_patch = jnp.asarray(_cell_of_patch(grid))
    alive = mask.reshape(batch * frames, -1)[:, of_patch]
    bias = jnp.zeros_like(x[..., 0])
    logits, cells, taps = jnp.zeros(mask.shape), jnp.zeros(()), {}
    for i, p in enumerate(blocks):
        if i == cfg.prune_after + 1 and prune.has_scorer:
            cells = grid.to_cells(x).reshape(batch, frames, grid.cells, grid.window, -1)
            scorer = Scorer(cfg.heads, cfg.head_dim, cfg.mlp, prune.across_items)
            logits = scorer.apply({"params": params["scorer"]}, cells, rows)
            bias = soft_bias(logits, rows, grid, prune.rescale).reshape(batch * frames, -1)[:, of_patch]
        if i == cfg.prune_after + 2:
            bias = jnp.where(alive, 0.0, -1e9)
        x = _block(p, x, bias, cfg)
        taps[i] = x
    features = jnp.concatenate([taps[i] for i in cfg.feature_layers], axis=-1) * alive[..., None]
    return Plain(grid.to_cells(features).reshape(batch, frames, grid.cells, grid.window, -1), logits, cells)


def _cell_of_patch(grid: CellGrid) -> list[int]:
    """The cell that each patch lies in."""
    where = {int(patch): cell for cell, slots in enumerate(grid.slots) for patch in slots if patch >= 0}
    return [where[patch] for patch in range(grid.patches)]
