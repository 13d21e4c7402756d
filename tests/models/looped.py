"""The language model without a scan: its own blocks in a Python loop, each with its slice of the stacked parameters."""

import jax
import jax.numpy as jnp

from sttts_jax.models.llm import Llm, LlmBlock
from sttts_jax.models.lora import Adapters
from sttts_jax.ops.attention.row_rule import RowRule
from sttts_jax.ops.attention.rows import plan_rows
from sttts_jax.ops.norm import rms_norm


def looped(llm: Llm, x: jax.Array, positions: jax.Array, rule: RowRule) -> jax.Array:
    """What `Llm.__call__` gives without a cache: `model.apply(params, x, positions, rule, method=looped)`."""
    c, carry = llm.cfg, (x.astype(llm.dtype), None)
    block = LlmBlock(c, llm.dtype, Adapters(llm.lora, "llm/blocks"), parent=None)
    rope, plan = llm._rope(positions), plan_rows(rule, rule, kernels=llm.attention, block=llm.query_block)
    for i, table in enumerate(llm._rope_table_of_layer()):
        layer = jax.tree.map(lambda p, i=i: p[i], llm.variables["params"]["blocks"])
        carry, _ = block.apply({"params": layer}, carry, (i, table), rope, plan, jnp.zeros((), jnp.int32), True)
    return rms_norm(carry[0], llm.final_norm, c.norm_eps)
