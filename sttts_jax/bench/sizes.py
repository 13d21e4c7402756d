"""Which model to measure: a preset, explicit sizes over it, or a quarter of its width where nothing is fast."""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig
from sttts_jax.models.presets import preset

QUARTER = 4
SHARE = Fraction(1, 5)  # of the blocks of a whole model, where nothing is fast
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


def bench_vlm(
    name: str, *, reduce: bool, vit: Mapping[str, int] | None = None, llm: Mapping[str, int] | None = None
) -> tuple[VlmConfig, bool]:
    """(config, whether it was reduced). `vit`, `llm`: fields of their configs instead of the preset's.

    With `reduce` a wide preset without explicit widths becomes a quarter as wide and a fifth as deep. The connector
    follows the ViT's heads and the language model's MLP, as in every preset. Raises ValueError with one sentence.
    """
    whole = preset(name)
    image: dict[str, Any] = dict(vit or {})
    text: dict[str, Any] = dict(llm or {})
    reduced = reduce and not (set(image) | set(text)) - {"layers"} and whole.vit.width >= WIDE
    model = thinned(_quarter(whole), SHARE) if reduced else whole
    layers = image.pop("layers", model.vit.layers)
    text = _known_layers(model, text)
    model = _rebuilt(dataclasses.replace(model.vit, **image), dataclasses.replace(model.llm, **text))
    return _with_vit_layers(model, layers, whole.vit).check(), reduced


def thinned(model: VlmConfig, share: Fraction) -> VlmConfig:
    """About `share` of the blocks of both parts; the vocabulary follows, so that parts cost as in the whole model."""
    layers = max(round(model.llm.layers * share), 1)
    vocab = max(round(model.llm.vocab * layers / model.llm.layers), 1)
    llm = dataclasses.replace(model.llm, **_known_layers(model, {"layers": layers}), vocab=vocab)
    return _with_vit_layers(_rebuilt(model.vit, llm), max(round(model.vit.layers * share), 3), model.vit)


def _quarter(model: VlmConfig) -> VlmConfig:
    vit = {key: getattr(model.vit, key) // QUARTER for key in ("width", "heads", "mlp")}
    llm = {key: getattr(model.llm, key) // QUARTER for key in ("width", "heads", "kv_heads", "mlp", "vocab")}
    return _rebuilt(dataclasses.replace(model.vit, **vit), dataclasses.replace(model.llm, **llm))


def _rebuilt(vit: VitConfig, llm: LlmConfig) -> VlmConfig:
    connector = ConnectorConfig(width=vit.width, heads=vit.heads, head_dim=vit.head_dim, mlp=llm.mlp)
    return VlmConfig(vit, connector, llm)


def _known_layers(model: VlmConfig, llm: Mapping[str, Any]) -> dict[str, Any]:
    """`llm` with the scaled rope of those layers alone that are left."""
    yarn = model.llm.yarn
    if yarn is None or "layers" not in llm:
        return dict(llm)
    left = tuple(layer for layer in yarn.layers if layer < llm["layers"])
    return {**llm, "yarn": dataclasses.replace(yarn, layers=left)}


def _with_vit_layers(model: VlmConfig, layers: int, whole: VitConfig) -> VlmConfig:
    """Fewer or more ViT blocks, about the same share of them before the drop as in `whole`."""
    vit = model.vit
    if layers == vit.layers:
        return model
    if layers < 3:
        raise ValueError(f"--vit_layers {layers} is too few; give 3 or more: one scored, one biased, one pruned")
    before = round((whole.prune_after + 2) * layers / whole.layers)
    vit = dataclasses.replace(_with_layers(vit, layers), prune_after=min(max(before - 2, 0), layers - 3))
    return dataclasses.replace(model, vit=vit)
