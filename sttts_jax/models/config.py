"""Frozen configs of the model. `check()` returns the config, or raises one sentence that says what to change."""

import dataclasses
import math
from typing import Literal, Self

from sttts_jax.models.lora import LoraConfig
from sttts_jax.pruning.cells import CellGrid


def _require_positive(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{type(config).__name__}.{name} is {value}; it must be positive.")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The vision transformer (Molmo2: SigLIP 2).

    `feature_layers` are in the order of the connector's channels; the scorer reads the output of block `prune_after`.
    """

    width: int
    heads: int
    head_dim: int
    mlp: int
    layers: int
    patch: int
    grid: tuple[int, int] = (27, 27)
    cell: tuple[int, int] = (3, 3)
    norm_eps: float = 1e-6
    feature_layers: tuple[int, ...] = (24, 18)
    prune_after: int = 3

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def cell_grid(self) -> CellGrid:
        """Where the patches and cells of a frame lie."""
        return CellGrid(self.grid, self.cell)

    @property
    def patches(self) -> int:
        """N, patches of a frame."""
        return self.cell_grid.patches

    @property
    def cells(self) -> int:
        """C, cells of a frame."""
        return self.cell_grid.cells

    @property
    def window(self) -> int:
        """W, patches of a cell."""
        return self.cell_grid.window

    @property
    def head_layers(self) -> int:
        """Blocks that see all patches: those up to the scorer, and the biased one. The drop follows."""
        return self.prune_after + 2

    @property
    def feature_width(self) -> int:
        """Channels that the connector reads."""
        return self.width * len(self.feature_layers)

    def check(self) -> Self:
        """Raises ValueError with one sentence if the config cannot be built."""
        _require_positive(self, ("width", "heads", "head_dim", "mlp", "layers", "patch", "norm_eps"))
        if min(*self.grid, *self.cell) <= 0:
            raise ValueError(f"VitConfig.grid {self.grid} and cell {self.cell} must be positive.")
        if not self.feature_layers or not all(0 <= i < self.layers for i in self.feature_layers):
            raise ValueError(
                f"VitConfig.feature_layers {self.feature_layers} must name blocks 0..{self.layers - 1} (0-based)."
            )
        if len(set(self.feature_layers)) != len(self.feature_layers):
            raise ValueError(f"VitConfig.feature_layers {self.feature_layers} names a block twice.")
        if not 0 <= self.prune_after < self.layers - 1:
            raise ValueError(
                f"VitConfig.prune_after is {self.prune_after}; a block must follow it, so use 0..{self.layers - 2}."
            )
        return self


def cuts(cfg: VitConfig) -> tuple[tuple[int, int], ...]:
    """Segments (first block, one past the last) of the ViT's parameter stacks."""
    p = cfg.prune_after + 1
    edges = sorted({0, p, p + 1, cfg.layers} | {layer + 1 for layer in cfg.feature_layers})
    return tuple(zip(edges[:-1], edges[1:], strict=True))


def stack_name(first: int, end: int) -> str:
    """Name of a segment in the parameter tree; both block numbers inclusive."""
    return f"blocks_{first:02d}_{end - 1:02d}"


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Attention pooling of a cell's patches, then a SwiGLU projector to the LLM width (Molmo2)."""

    width: int
    heads: int
    head_dim: int
    mlp: int

    def check(self) -> Self:
        """Raises ValueError with one sentence if the config cannot be built."""
        _require_positive(self, ("width", "heads", "head_dim", "mlp"))
        return self


@dataclasses.dataclass(frozen=True)
class YarnConfig:
    """YaRN rope scaling (arXiv 2309.00071) on the blocks named by `layers`; the other blocks use plain rope."""

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_length: int
    layers: tuple[int, ...]

    def check(self) -> Self:
        """Raises ValueError with one sentence if the config cannot be built."""
        _require_positive(self, ("factor", "attention_factor", "beta_fast", "beta_slow", "original_length"))
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"YarnConfig.beta_fast {self.beta_fast} must be above beta_slow {self.beta_slow}.")
        return self


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """A decoder of the Qwen3 (`norm="pre"`, `qk_norm="head"`) or the Olmo3 kind (`norm="post"`, `qk_norm="full"`)."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    extra_vocab: int = 128
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    norm: Literal["pre", "post"] = "pre"
    qk_norm: Literal["head", "full"] = "head"
    yarn: YarnConfig | None = None
    tied: bool = True
    dropout: float = 0.0

    def check(self) -> Self:
        """Raises ValueError with one sentence if the config cannot be built."""
        names = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp", "vocab", "rope_theta", "norm_eps")
        _require_positive(self, names)
        if self.extra_vocab < 0:
            raise ValueError(f"LlmConfig.extra_vocab is {self.extra_vocab}; use 0 or more rows.")
        if self.heads % self.kv_heads:
            raise ValueError(f"LlmConfig.heads {self.heads} must be a multiple of kv_heads {self.kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"LlmConfig.head_dim {self.head_dim} must be even, because rope rotates pairs.")
        if self.norm not in ("pre", "post"):
            raise ValueError(f"LlmConfig.norm is {self.norm!r}; use 'pre' (Qwen3) or 'post' (Olmo3).")
        if self.qk_norm not in ("head", "full"):
            raise ValueError(f"LlmConfig.qk_norm is {self.qk_norm!r}; use 'head' (Qwen3) or 'full' (Olmo3).")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"LlmConfig.dropout is {self.dropout}; use a rate in [0, 1).")
        if self.yarn is not None:
            self.yarn.check()
            if not all(0 <= i < self.layers for i in self.yarn.layers):
                raise ValueError(f"YarnConfig.layers {self.yarn.layers} must name blocks 0..{self.layers - 1}.")
        return self


@dataclasses.dataclass(frozen=True)
class VlmConfig:
    """The three parts of a video language model; `lora`: low-rank additions to the projections of two of them."""

    vit: VitConfig
    connector: ConnectorConfig
    llm: LlmConfig
    lora: LoraConfig | None = None

    @property
    def projections(self) -> dict[str, tuple[int, int, int]]:
        """{name: (layers, inputs, outputs)} of every stacked matrix that LoRA can add to."""
        found = {f"llm/blocks/{name}": (self.llm.layers, *sides) for name, sides in _llm_sides(self.llm).items()}
        for first, end in cuts(self.vit):
            if first <= max(self.vit.feature_layers):  # later blocks do not exist
                stack = stack_name(first, end)
                found |= {f"vit/{stack}/{name}": (end - first, *sides) for name, sides in _vit_sides(self.vit).items()}
        return found

    def check_shared(self, devices: int) -> None:
        """Raises ValueError unless so many devices can share out the heads: they would repeat each other's work."""
        vit, llm = self.vit.heads, self.llm.kv_heads
        if math.gcd(vit, llm) % devices:
            raise ValueError(
                f"mesh.tensor x mesh.sequence = {devices} must divide the {vit} heads of the vision transformer and "
                f"the {llm} key heads of the language model, {math.gcd(vit, llm)} at most; give the other devices to "
                "mesh.data or mesh.fsdp, with more rows a batch"
            )

    def check(self) -> Self:
        """Raises ValueError with one sentence if a part, or two parts together, cannot be built."""
        self.vit.check()
        self.connector.check()
        self.llm.check()
        if not math.isfinite(self.llm.rope_theta):
            raise ValueError(f"LlmConfig.rope_theta is {self.llm.rope_theta}; it must be finite.")
        if self.lora is not None:
            self.lora.check(self.projections)
        return self


def _llm_sides(cfg: LlmConfig) -> dict[str, tuple[int, int]]:
    heads, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    return {
        "q": (cfg.width, heads),
        "kv": (cfg.width, 2 * kv),
        "out": (heads, cfg.width),
        "gate_up": (cfg.width, 2 * cfg.mlp),
        "down": (cfg.mlp, cfg.width),
    }


def _vit_sides(cfg: VitConfig) -> dict[str, tuple[int, int]]:
    heads = cfg.heads * cfg.head_dim
    return {
        "qkv": (cfg.width, 3 * heads),
        "out": (heads, cfg.width),
        "fc1": (cfg.width, cfg.mlp),
        "fc2": (cfg.mlp, cfg.width),
    }
