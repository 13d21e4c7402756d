"""config.json of what Molmo2 starts from: a SigLIP 2 vision tower, and Qwen3 or Olmo3 as the language model."""

from collections.abc import Mapping
from typing import Any

from sttts_jax.convert.fields import BadConfig, Fields
from sttts_jax.convert.molmo2_config import CELL, PRUNE_AFTER, feature_layers
from sttts_jax.convert.rope import read_rope
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig

FEATURES = (-3, -9)  # of the declared blocks (Molmo2)
SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
QWEN3_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
}
OLMO3_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 50_304,
    "rms_norm_eps": 1e-5,
}
OLMO3_THETA = 500_000.0


def siglip_config(config: Mapping[str, Any], features: tuple[int, ...] = FEATURES) -> VitConfig:
    """config.json of SigLIP or SigLIP 2 at one fixed image size, whole or vision tower alone, as our config.

    `features`: the blocks that the connector reads; later ones are not built. Raises BadConfig.
    """
    top = Fields("config.json", config).checked()
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip_vision_model"):
        raise BadConfig(f"config.json.model_type is {kind!r}; the vision part must be 'siglip' (fixed image size)")
    fields = top.part("vision_config") if kind == "siglip" else top
    d = SIGLIP_DEFAULTS
    fields.only("hidden_act", "gelu_pytorch_tanh")
    fields.only("num_channels", 3)
    fields.zero("attention_dropout")
    width, heads, patch = (fields.get(d, name) for name in ("hidden_size", "num_attention_heads", "patch_size"))
    side = fields.get(d, "image_size") // patch
    if width % heads:
        raise BadConfig(f"{fields.where}.hidden_size {width} is no multiple of num_attention_heads {heads}")
    taps = feature_layers(list(features), fields.get(d, "num_hidden_layers"))
    layers = max(taps) + 1
    return VitConfig(
        width=width,
        heads=heads,
        head_dim=width // heads,
        mlp=fields.get(d, "intermediate_size"),
        layers=layers,
        patch=patch,
        grid=(side, side),
        cell=CELL,
        norm_eps=fields.get(d, "layer_norm_eps"),
        feature_layers=taps,
        prune_after=max(min(PRUNE_AFTER, layers - 2), 0),
    ).check()


def text_config(config: Mapping[str, Any]) -> LlmConfig:
    """config.json of Qwen3 or Olmo3 as our config, with Molmo2's 128 rows for added tokens.

    Olmo3's sliding windows are left behind, as Molmo2 does; its YaRN stays on the layers with full attention.
    Raises BadConfig.
    """
    fields = Fields("config.json", config).checked()
    kind = config.get("model_type")
    if kind not in ("qwen3", "olmo3"):
        raise BadConfig(f"config.json.model_type is {kind!r}; the language model must be 'qwen3' or 'olmo3'")
    fields.only("hidden_act", "silu")
    fields.only("attention_bias", False)
    fields.only("use_sliding_window", False)
    fields.zero("attention_dropout")
    return (_qwen3(fields) if kind == "qwen3" else _olmo3(fields)).check()


def _qwen3(fields: Fields) -> LlmConfig:
    d = QWEN3_DEFAULTS
    theta, yarn = read_rope(fields, fields.get(d, "num_hidden_layers"))
    heads = fields.get(d, "num_key_value_heads"), fields.get(d, "head_dim")
    return _llm(fields, d, *heads, rope_theta=theta, yarn=yarn)


def _olmo3(fields: Fields) -> LlmConfig:
    d, values = OLMO3_DEFAULTS, fields.values
    layers, heads = fields.get(d, "num_hidden_layers"), fields.get(d, "num_attention_heads")
    kinds = values.get("layer_types")
    full = [i for i in range(layers) if (kinds[i] == "full_attention" if kinds else i % 4 == 3)]
    nested = values.get("rope_parameters") or {}
    flat = {**values, "rope_scaling_layers": full}
    if "full_attention" in nested:
        flat["rope_parameters"] = nested["full_attention"]
    theta, yarn = read_rope(Fields(fields.where, flat), layers, OLMO3_THETA)
    kv_heads = values.get("num_key_value_heads") or heads
    head_dim = values.get("head_dim") or fields.get(d, "hidden_size") // heads
    return _llm(fields, d, kv_heads, head_dim, rope_theta=theta, yarn=yarn, norm="post", qk_norm="full")


def _llm(fields: Fields, d: Mapping[str, Any], kv_heads: int, head_dim: int, **more: Any) -> LlmConfig:
    return LlmConfig(
        width=fields.get(d, "hidden_size"),
        layers=fields.get(d, "num_hidden_layers"),
        heads=fields.get(d, "num_attention_heads"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=fields.get(d, "intermediate_size"),
        vocab=fields.get(d, "vocab_size"),
        norm_eps=fields.get(d, "rms_norm_eps"),
        tied=bool(fields.values.get("tie_word_embeddings")),
        **more,
    )


def vlm_of_backbones(vision: Mapping[str, Any], text: Mapping[str, Any]) -> VlmConfig:
    """The model that starts from the two: a fresh connector of the tower's heads and the language model's MLP width."""
    vit, llm = siglip_config(vision), text_config(text)
    return VlmConfig(vit, ConnectorConfig(vit.width, vit.heads, vit.head_dim, llm.mlp), llm).check()
