"""Rope fields of a config.json: theta, and YaRN on some layers.

Released files have `rope_theta`, `rope_scaling` and `rope_scaling_layers`; transformers from version 5 on has one table
`rope_parameters`, for Olmo3 one per kind of layer.
"""

import math
from collections.abc import Mapping
from typing import Any

from sttts_jax.convert.fields import BadConfig, Fields
from sttts_jax.models.config import LlmConfig, YarnConfig

THETA = 10_000.0  # what transformers takes where a file says nothing


def read_rope(fields: Fields, layers: int, default_theta: float = THETA) -> tuple[float, YarnConfig | None]:
    """(theta, YaRN or None) of a text config of `layers` blocks. Raises BadConfig for any other kind of scaling."""
    values = fields.values
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise BadConfig(f"{fields.where}: the rope parameters {rope!r} are no table of fields")
    fields.only("partial_rotary_factor", 1.0)
    scaled = values.get("rope_scaling_layers")
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or default_theta)
    where = tuple(range(layers)) if scaled is None else tuple(scaled)
    return theta, _yarn(Fields(f"{fields.where}: rope", rope), where, values.get("max_position_embeddings"))


def _yarn(rope: Fields, layers: tuple[int, ...], longest: int | None) -> YarnConfig | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    rope.only("partial_rotary_factor", 1.0)
    if kind == "default" or not layers:
        return None
    if kind != "yarn":
        raise BadConfig(f"{rope.where}.rope_type is {kind!r}; only 'default' and 'yarn' are built here")
    rope.only("truncate", True)
    for name in ("mscale", "mscale_all_dim"):
        if rope.values.get(name):
            raise BadConfig(f"{rope.where}.{name} is {rope.values[name]!r}; give attention_factor in its place")
    factor = rope.values.get("factor")
    length = rope.values.get("original_max_position_embeddings") or longest
    if not factor or not length:
        raise BadConfig(f"{rope.where}: YaRN needs factor and original_max_position_embeddings")
    scale = rope.values.get("attention_factor")
    return YarnConfig(
        factor=float(factor),
        attention_factor=0.1 * math.log(max(factor, 1.0)) + 1.0 if scale is None else float(scale),
        beta_fast=float(rope.values.get("beta_fast") or 32.0),
        beta_slow=float(rope.values.get("beta_slow") or 1.0),
        original_length=int(length),
        layers=layers,
    )


def rope_fields(llm: LlmConfig, hub: bool) -> dict[str, Any]:
    """The fields of a text config that say the same."""
    yarn = llm.yarn
    layers = None if yarn is None else list(yarn.layers)
    scaling: dict[str, Any] | None = None
    if yarn is not None:
        scaling = {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "attention_factor": yarn.attention_factor,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "original_max_position_embeddings": yarn.original_length,
        }
    if hub:
        return {"rope_theta": llm.rope_theta, "rope_scaling": scaling, "rope_scaling_layers": layers}
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": llm.rope_theta}
    return {"rope_parameters": parameters, "rope_scaling_layers": layers}
