"""One update: gradients of sums over micro-batches, one division by global sums, AdamW a group, a guard against NaN."""

from typing import Any

import jax
import jax.numpy as jnp

from sttts_jax.models.vlm import Batch, Vlm, VlmLoss, frame_rows
from sttts_jax.pruning.aux_loss import counted_frames
from sttts_jax.pruning.saturation import saturated_share
from sttts_jax.pruning.scorer import HISTOGRAM_BINS
from sttts_jax.train.config import LossConfig
from sttts_jax.train.optimizer import Optimizer, all_finite, guarded_update
from sttts_jax.train.state import TrainState


def train_step(
    config: LossConfig, seed: int, model: Vlm, optimizer: Optimizer, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """(new state, metrics). loss = sum(w (ce + z)) / sum(w) + c * sum(aux) / count(aux), both over the global batch.

    What is random follows from `seed` and the step's number alone.
    A step whose loss, gradients or new parameters are not finite changes neither parameters nor moments, and is
    counted. Only what the optimizer trains is differentiated by.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    weight = jnp.sum(jnp.maximum(batch["weights"], 0.0))  # []; of the whole batch, as the next line
    cells = _aux_cells(model, batch)

    def loss(trained: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, VlmLoss]:
        params = optimizer.joined(trained, state.params)
        select, dropout = jax.random.split(key)
        out = model.apply(
            {"params": params}, part, select, deterministic=False, method="loss", rngs={"dropout": dropout}
        )
        task = (out.task.cross_entropy + config.z_loss * out.task.z) / jnp.maximum(weight, 1e-9)
        return task + model.prune.aux_weight * out.aux / jnp.maximum(cells, 1.0), out

    grad = jax.value_and_grad(loss, has_aux=True)
    (total, out), grads = _accumulate(grad, optimizer.trained(state.params), batch, key, config.accumulate)
    norms = optimizer.norms(grads)
    finite = all_finite(total, norms)
    step = state.step + 1
    params, opt, finite = guarded_update(optimizer, grads, state.opt, state.params, step, finite)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = TrainState(step, skipped, state.all_skipped + ~finite, params, opt)
    metrics = _metrics(model, batch, out, norms) | {
        "loss": total,
        "skipped_in_row": skipped,
        "skipped": new.all_skipped,
    }
    return new, metrics


def _aux_cells(model: Vlm, batch: Batch) -> jax.Array:
    """How many cells the temporal loss counts in the whole batch; known before any micro-batch is run."""
    counted = counted_frames(frame_rows(batch), model.prune.across_items)  # [B, F - 1]
    return jnp.sum(counted).astype(jnp.float32) * model.cfg.vit.cells


def _accumulate(
    grad: Any, trained: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[tuple[jax.Array, VlmLoss], Any]:
    """Sums over `parts` micro-batches of rows; per-row outputs are put together again."""
    if parts == 1:
        return grad(trained, batch, key)
    # [B, ..] -> [parts, B / parts, ..]: dealt out in turn, so that every micro-batch has rows of every shard of a mesh.
    split = {name: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0) for name, x in batch.items()}

    def one(sums: Any, inputs: Any) -> tuple[Any, Any]:
        summed, rows = _sums_and_rows(grad, trained, inputs)
        return jax.tree.map(jnp.add, sums, summed), rows

    inputs = (split, jax.random.split(key, parts))
    shapes = jax.eval_shape(lambda i: _sums_and_rows(grad, trained, i)[0], jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (value, task, aux, count, grads), (kept, scores) = jax.lax.scan(one, zeros, inputs)

    def join(x: jax.Array) -> jax.Array:  # [parts, B / parts, ..] -> [B, ..]
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    return (value, VlmLoss(task, aux, count, join(kept), None if scores is None else join(scores))), grads


def _sums_and_rows(grad: Any, trained: Any, inputs: Any) -> tuple[Any, Any]:
    """(what micro-batches add up, what each has of its own rows)."""
    (value, out), grads = grad(trained, *inputs)
    return (value, out.task, out.aux, out.aux_count, grads), (out.kept, out.scores)


def _metrics(model: Vlm, batch: Batch, out: VlmLoss, norms: dict[str, jax.Array]) -> dict[str, jax.Array]:
    rows = frame_rows(batch)
    task, cells = out.task, model.cfg.vit.cells
    weight = jnp.maximum(task.weight, 1e-9)
    later = rows.droppable  # [B, F]
    share = out.kept.sum(axis=-1) / cells  # [B, F]
    mean = jnp.sum(share * later) / jnp.maximum(jnp.sum(later), 1)
    visual = jnp.sum(out.kept & rows.video[..., None])  # of [B, F, C]: cells of videos that survive
    frame_cells = rows.item.shape[1] * cells  # F * C; numbers from there on are windows of images
    of_cells = (batch["cells"] >= 0) & (batch["cells"] < frame_cells)  # [B, U]
    tokens = jnp.sum(batch["example"] >= 0) - jnp.sum(of_cells) + visual
    metrics = {
        "loss_task": task.cross_entropy / weight,
        "loss_z": task.z / weight,
        "accuracy_tokens": task.correct / jnp.maximum(task.tokens, 1),
        "kept/share": visual / jnp.maximum(jnp.sum(rows.video) * cells, 1),
        "kept/later_mean": mean,
        "kept/later_std": jnp.sqrt(jnp.sum(jnp.square(share - mean) * later) / jnp.maximum(jnp.sum(later), 1)),
        "kept/later_min": jnp.min(jnp.where(later, share, 1.0)),
        "kept/later_max": jnp.max(jnp.where(later, share, 0.0)),
        "fill/tokens": tokens / (batch["tokens"].shape[0] * model.length),
        "fill/cells": jnp.sum(out.kept) / (batch["tokens"].shape[0] * model.capacity),
        "count/tokens": tokens,
        "count/frames": jnp.sum(rows.valid),
        **{f"grad_norm/{name}": norm for name, norm in norms.items()},
    }
    if out.scores is not None:
        metrics["loss_aux"] = out.aux / jnp.maximum(out.aux_count, 1.0)
        counted = jnp.broadcast_to(later[..., None], out.scores.shape).astype(jnp.float32)  # [B, F, C]
        counts, _ = jnp.histogram(out.scores, HISTOGRAM_BINS, (0.0, 1.0), weights=counted)
        metrics["scores"] = counts  # [HISTOGRAM_BINS]
        metrics["scores/saturated"] = saturated_share(out.scores, rows)
    return metrics
