"""Attention over packed rows: the front door, which checks, refuses what no kernel can honour, and calls one."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from sttts_jax import dims
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.attention.row_shapes import check_heads, check_rules
from sttts_jax.ops.attention.rows_gpu import GpuRowsPlan, attend_rows_gpu, plan_rows_gpu
from sttts_jax.ops.attention.rows_tpu import TpuRowsPlan, attend_rows_tpu, plan_rows_tpu
from sttts_jax.ops.attention.rows_xla import XlaRowsPlan, attend_rows_xla
from sttts_jax.sharding import on_shards, split_axes

RowsPlan = XlaRowsPlan | GpuRowsPlan | TpuRowsPlan


def plan_rows(rule_q: RowRule, rule_k: RowRule, *, kernels: str, block: int = 512) -> RowsPlan:
    """Who sees whom in packed rows (`mask_rows`), for `attend_rows`; once per forward.

    Rules [B, S] and [B, S2] of queries and keys. `kernels` is "tpu" (`rows_tpu`), "gpu" (`rows_gpu`) or one of those
    that take XLA's, which goes through the queries in blocks of `block`. A single query a row, as in decoding, is
    bound by reading the keys: XLA does that everywhere.
    """
    check_rules(rule_q, rule_k)
    if block < 1:
        raise ValueError(f"block is {block}; it must be a positive number of queries.")
    makers: dict[str, Any] = {"tpu": plan_rows_tpu, "gpu": plan_rows_gpu}
    make = makers.get(kernels)
    if make is None or rule_q.order.shape[1] == 1:
        return XlaRowsPlan(rule_q, rule_k, block)
    rows = PartitionSpec(*split_axes(rule_q.order.shape[:1], dims.ACT_BATCH))
    return on_shards(make, (rows, rows), rows)(rule_q, rule_k)


def attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, plan: RowsPlan) -> jax.Array:
    """Grouped-query attention over packed rows, by the kernel that `plan` was made for.

    q [B, S, H, d], k and v [B, S2, Hkv, d] with Hkv dividing H (key head j serves query heads j*H/Hkv ...). No kernel
    holds S x S2 values in either pass. Softmax in float32, result [B, S, H, d] in q.dtype; padding queries give exact
    zeros. Rows and heads may be split over devices.
    """
    check_heads(q, k, v, plan.planned)
    if isinstance(plan, XlaRowsPlan):
        return attend_rows_xla(q, k, v, plan.rule_q, plan.rule_k, plan.block)
    kernel: Any = attend_rows_gpu if isinstance(plan, GpuRowsPlan) else attend_rows_tpu
    # Query heads follow their key head, so both are split alike or not at all.
    rows, heads = split_axes((q.shape[0], k.shape[2]), dims.ACT_BATCH, dims.ACT_KV_HEADS)
    tokens = PartitionSpec(rows, None, heads)
    return on_shards(kernel, (tokens, tokens, tokens, PartitionSpec(rows)), tokens)(q, k, v, plan)
