"""A tree with LoRA -> the tree of the same function without it, whole and in memory."""

from collections.abc import Mapping
from typing import Any

from sttts_jax.models.lora import KERNEL, LoraConfig, factor_names, merged_leaf


def merge(params: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """`params` unboxed, NumPy or JAX arrays; both factors of a projection lie beside it."""
    factors = {name: factor_names(name) for name in params}
    used = {name for a, b in factors.values() if a in params for name in (a, b)}
    merged: dict[str, Any] = {}
    for name in params.keys() - used:
        value, (a, b) = params[name], factors[name]
        if a in params:
            merged[name] = _projection(value, params[a], params[b], lora.scale)
        else:
            merged[name] = merge(value, lora) if isinstance(value, Mapping) else value
    return merged


def _projection(value: Any, a: Any, b: Any, scale: float) -> Any:
    if isinstance(value, Mapping):
        return {**value, KERNEL: merged_leaf(value[KERNEL], a, b, scale)}
    return merged_leaf(value, a, b, scale)
