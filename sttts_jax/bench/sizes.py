"""Which ViT to measure: a preset, explicit sizes over it, or a quarter of its width where nothing is fast."""

import dataclasses
from typing import Any

from sttts_jax.models.config import VitConfig
from sttts_jax.models.presets import preset

QUARTER = 4
WIDE = 1024  # narrower models run on any machine as they are


def bench_vit(
    name: str,
    *,
    reduce: bool,
    width: int | None = None,
    heads: int | None = None,
    head_dim: int | None = None,
    mlp: int | None = None,
    layers: int | None = None,
) -> tuple[VitConfig, bool]:
    """(config, whether it was reduced). With `reduce` a wide preset without explicit sizes becomes a quarter as wide.

    Raises ValueError with one sentence for sizes that cannot be built, or leave no block after the drop.
    """
    vit = preset(name).vit
    given = {"width": width, "heads": heads, "head_dim": head_dim, "mlp": mlp}
    explicit: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    reduced = reduce and not explicit and vit.width >= WIDE
    if reduced:
        explicit = {key: getattr(vit, key) // QUARTER for key in ("width", "heads", "mlp")}
    vit = dataclasses.replace(vit, **explicit)
    if layers is not None and layers != vit.layers:
        vit = _with_layers(vit, layers)
    return vit.check(), reduced


def _with_layers(vit: VitConfig, layers: int) -> VitConfig:
    """The same model with fewer or more blocks: the scorer no later than it leaves one block to prune."""
    if layers < 3:
        raise ValueError(f"--layers {layers} is too few; give 3 or more: one scored, one biased, one pruned")
    features = tuple(dict.fromkeys((layers - 1, 3 * (layers - 1) // 4)))
    return dataclasses.replace(
        vit, layers=layers, prune_after=min(vit.prune_after, layers - 3), feature_layers=features
    )
