"""LoRA (arXiv 2106.09685): trainable low-rank additions to projections of the language model and of the ViT.

    y = x W + (alpha / rank) (x A) B          A: normal with variance 1 / fan-in, B: zeros, so y starts as x W

NAME_lora_a and NAME_lora_b stand beside the projection NAME, stacked over layers like it: `llm/blocks/q_lora_a`
[L, E, r] and `llm/blocks/q_lora_b` [L, r, H, d]. A fused projection (kv, gate_up, qkv) has one A for all of its parts,
which therefore share what they read, and a B of its own for each: kv_lora_a [L, E, r], kv_lora_b [L, r, 2, Hkv, d].
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from sttts_jax import dims
from sttts_jax.ops.layers import fan_in, weight, zeros

A, B = "_lora_a", "_lora_b"
KERNEL = "kernel"  # the matrix of a projection that also has a bias


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """rank r; alpha, the product counts alpha / rank; targets, regexes on whole names of projections, such as
    "llm/blocks/(q|kv|out|gate_up|down)" and "vit/blocks_.*/(qkv|out|fc1|fc2)".
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, name: str) -> bool:
        """Whether a target matches the projection called `name`."""
        return any(re.fullmatch(target, name) for target in self.targets)

    def check(self, names: Iterable[str]) -> Self:
        """`names`: of all projections of the model. Raises ValueError with one sentence; returns self."""
        if self.rank < 1:
            raise ValueError(f"LoRA rank {self.rank} must be at least 1.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"LoRA alpha {self.alpha} must be positive.")
        if not self.targets:
            raise ValueError("LoRA has no targets; give regexes on names of projections, or rank 0 for no LoRA.")
        names = list(names)
        for target in self.targets:
            try:
                idle = not any(re.fullmatch(target, name) for name in names)
            except re.error as error:
                raise ValueError(f"LoRA target {target!r} is no regular expression ({error}).") from None
            if idle:
                raise ValueError(f"LoRA target {target!r} matches no projection; they are {', '.join(names)}.")
        return self


@dataclasses.dataclass(frozen=True)
class Adapters:
    """LoRA in the blocks of one stack, such as "llm/blocks"; without a config there is none."""

    lora: LoraConfig | None = None
    stack: str = ""

    def add(
        self, block: nn.Module, name: str, y: jax.Array, x: jax.Array, axes: tuple[str, ...], inputs: int = 1
    ) -> jax.Array:
        """y [..., out] = x [..., in] W, with (alpha / rank) (x A) B added if the projection `name` is a target.

        Call it inside `block`'s compact method: the factors become its parameters. `axes` are the logical names of W's
        axes, the first `inputs` of them its input.
        """
        if self.lora is None or not self.lora.adapts(f"{self.stack}/{name}"):
            return y
        ins, outs = x.shape[x.ndim - inputs :], y.shape[y.ndim - (len(axes) - inputs) :]
        rank = self.lora.rank
        a = weight(block, name + A, fan_in(inputs), (*ins, rank), (*axes[:inputs], dims.LORA), y.dtype)  # [in, r]
        b = weight(block, name + B, zeros, (rank, *outs), (dims.LORA, *axes[inputs:]), y.dtype)  # [r, out]
        narrow = jnp.tensordot(x.astype(y.dtype), a, inputs) * self.lora.scale  # [..., r]
        return y + jnp.tensordot(narrow, b, 1)


def merged_leaf(weight: Any, a: Any, b: Any, scale: float) -> Any:
    """weight [.., in, out] + scale * a [.., in, r] b [.., r, out], in float32, rounded to the dtype of `weight`.

    Stacked over layers, or slices of one layer and of parts of `out` (see `factor_index`). NumPy in, NumPy out.
    """
    lead = a.ndim + b.ndim - 2 - weight.ndim
    wide = "float32"
    left = a.astype(wide).reshape(*a.shape[:lead], -1, a.shape[-1])
    right = b.astype(wide).reshape(*b.shape[:lead], b.shape[lead], -1)
    return (weight.astype(wide) + scale * (left @ right).reshape(weight.shape)).astype(weight.dtype)


def factor_names(leaf: str) -> tuple[str, str]:
    """Names that the factors of a leaf have where there are any: llm/blocks/q -> llm/blocks/q_lora_a and .._b."""
    name = leaf.removesuffix(f"/{KERNEL}")
    return name + A, name + B


def factor_index(index: tuple[Any, ...], a_axes: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(index into a, index into b) that belong to `index` into a stacked leaf, layer first; `a_axes`: of a, whole.

    With them, `merged_leaf` of the three slices is the slice of `merged_leaf` of the whole.
    """
    inputs = index[1 : a_axes - 1]
    return (*index[:1], *inputs), (*index[:1], slice(None), *index[a_axes - 1 :])
