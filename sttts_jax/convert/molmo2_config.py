"""config.json of Molmo2 <-> VlmConfig: as released ("hub", with `vit_config`) and as transformers saves it ("native").

transformers leaves out fields that have its class's default, so absent fields mean those. What our model cannot be is
refused by the name of the field. Training settings that are not the model (dropout apart) are not read.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from sttts_jax.convert.fields import BadConfig, Fields
from sttts_jax.convert.rope import read_rope, rope_fields
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig

ConfigStyle = Literal["hub", "native"]

CELL, PRUNE_AFTER = (3, 3), 3  # STTS, arXiv 2603.18004
MAX_POSITIONS = 36_864  # of the released models without YaRN
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 25,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "layer_norm_eps": 1e-6,
    "image_size": [378, 378],
    "patch_size": 14,
}
ADAPTER_DEFAULTS = {
    "vision_feature_layer": [24, 18],
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "intermediate_size": 18_944,
    "text_hidden_size": 3584,
}
TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12_288,
    "vocab_size": 151_936,
    "additional_vocab_size": 128,
    "rms_norm_eps": 1e-6,
    "qk_norm_type": "qwen3",
}
# Places of the added tokens behind the base vocabulary.
TOKEN_IDS = {
    "image_start_token_id": 0,
    "image_end_token_id": 1,
    "image_patch_id": 2,
    "low_res_image_start_token_id": 4,
    "frame_start_token_id": 7,
    "frame_end_token_id": 8,
}
HUB_TOKEN_IDS = {"image_col_id": 3, "image_low_res_id": 6}
QK_NORMS: dict[str, Literal["head", "full"]] = {"qwen3": "head", "olmo": "full"}


def style_of(config: Mapping[str, Any]) -> ConfigStyle:
    """Which of the two spellings a config.json of Molmo2 has."""
    return "hub" if "vit_config" in config and config.get("vision_config") is None else "native"


def vlm_config(config: Mapping[str, Any]) -> VlmConfig:
    """config.json of Molmo2, in either spelling, as our config.

    The vision transformer has the blocks up to the last one that the connector reads, however many are declared.
    `cell` and `prune_after` are those of STTS. Raises BadConfig that names the field which our model cannot be.
    """
    top = Fields("config.json", config).checked()
    top.only("model_type", "molmo2")
    hub = style_of(config) == "hub"
    vit, adapter, text = (top.part(name) for name in ("vit_config" if hub else "vision_config", *_PARTS))
    llm = _llm(text, bool(config.get("tie_word_embeddings")))
    tower = _vit(vit, adapter)
    connector = _connector(adapter, tower, llm)
    return VlmConfig(tower, connector, llm).check()


_PARTS = ("adapter_config", "text_config")


def _vit(fields: Fields, adapter: Fields) -> VitConfig:
    d = VISION_DEFAULTS
    fields.only("hidden_act", "gelu_pytorch_tanh")
    fields.only("num_channels", 3)
    fields.only("attention_bias", True)
    fields.zero("attention_dropout", "residual_dropout")
    heads = fields.get(d, "num_attention_heads")
    fields.only("num_key_value_heads", heads, absent=d["num_key_value_heads"])
    size = fields.get(d, "image_size", "image_default_input_size")
    patch = fields.get(d, "patch_size", "image_patch_size")
    height, width = (size, size) if isinstance(size, int) else size
    grid = height // patch, width // patch
    for name in ("num_position_embeddings", "image_num_pos"):
        fields.only(name, grid[0] * grid[1])
    declared = fields.get(d, "num_hidden_layers")
    features = feature_layers(adapter.get(ADAPTER_DEFAULTS, "vision_feature_layer", "vit_layers"), declared)
    layers = max(features) + 1
    return VitConfig(
        width=fields.get(d, "hidden_size"),
        heads=heads,
        head_dim=fields.get(d, "head_dim"),
        mlp=fields.get(d, "intermediate_size"),
        layers=layers,
        patch=patch,
        grid=grid,
        cell=CELL,
        norm_eps=fields.get(d, "layer_norm_eps"),
        feature_layers=features,
        prune_after=max(min(PRUNE_AFTER, layers - 2), 0),
    )


def feature_layers(layers: list[int], declared: int) -> tuple[int, ...]:
    """Block numbers from 0; negative ones count from the declared number of blocks, built or not."""
    if not layers or not all(-declared <= layer < declared for layer in layers):
        raise BadConfig(f"config.json: the feature layers {layers} must name some of the {declared} vision blocks")
    return tuple(layer % declared for layer in layers)


def _connector(fields: Fields, vit: VitConfig, llm: LlmConfig) -> ConnectorConfig:
    d = ADAPTER_DEFAULTS
    fields.only("hidden_act", "silu")
    fields.only("attention_bias", True)
    fields.only("mlp_bias", False)
    fields.only("pooling_attention_mask", True)
    fields.zero("attention_dropout", "residual_dropout", "image_feature_dropout")
    heads = fields.get(d, "num_attention_heads")
    fields.only("num_key_value_heads", heads, absent=d["num_key_value_heads"])
    fields.only("hidden_size", vit.width, absent=d["hidden_size"])
    fields.only("text_hidden_size", llm.width, absent=d["text_hidden_size"])
    return ConnectorConfig(vit.width, heads, fields.get(d, "head_dim"), fields.get(d, "intermediate_size"))


def _llm(fields: Fields, tied: bool) -> LlmConfig:
    d = TEXT_DEFAULTS
    fields.only("hidden_act", "silu")
    for name in ("attention_bias", "qkv_bias"):
        fields.only(name, False)
    fields.only("use_qk_norm", True)
    fields.zero("attention_dropout", "embedding_dropout")
    qk_norm = fields.get(d, "qk_norm_type")
    if qk_norm not in QK_NORMS:
        raise BadConfig(f"{fields.where}.qk_norm_type is {qk_norm!r}; only {' and '.join(QK_NORMS)} are built")
    layers = fields.get(d, "num_hidden_layers")
    theta, yarn = read_rope(fields, layers)
    return LlmConfig(
        width=fields.get(d, "hidden_size"),
        layers=layers,
        heads=fields.get(d, "num_attention_heads"),
        kv_heads=fields.get(d, "num_key_value_heads"),
        head_dim=fields.get(d, "head_dim"),
        mlp=fields.get(d, "intermediate_size"),
        vocab=fields.get(d, "vocab_size"),
        extra_vocab=fields.get(d, "additional_vocab_size"),
        rope_theta=theta,
        norm_eps=fields.get(d, "rms_norm_eps", "layer_norm_eps"),
        norm="post" if fields.values.get("norm_after") else "pre",
        qk_norm=QK_NORMS[qk_norm],
        yarn=yarn,
        tied=tied or bool(fields.values.get("tie_word_embeddings")),
        dropout=float(fields.values.get("residual_dropout") or 0.0),
    )


def hf_config(cfg: VlmConfig, style: ConfigStyle, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Our config as config.json; transformers' AutoModelForImageTextToText builds the "native" one.

    `base`, a config.json in either spelling: gives the token ids and whatever else we do not hold, and how a value is
    spelt that is still the same (27 declared vision blocks of which 25 are used). The head is never tied in the
    result: files hold it in full. Raises BadConfig for what transformers' Molmo2 cannot be.
    """
    if style not in ("hub", "native"):
        raise BadConfig(f"no config.json style is called {style!r}; use hub or native")
    cfg.check()
    if cfg.connector.width != cfg.vit.width:
        raise BadConfig(
            f"ConnectorConfig.width {cfg.connector.width} is not VitConfig.width {cfg.vit.width}, as Molmo2 wants it"
        )
    result: dict[str, Any] = {"architectures": ["Molmo2ForConditionalGeneration"], "model_type": "molmo2"}
    base = {} if base is None else copy.deepcopy(dict(base))
    own = bool(base) and style_of(base) == style
    left = {"vit_config", "vision_config", *_PARTS, *(() if own else ("auto_map",))}
    result |= {name: value for name, value in base.items() if name not in left}
    result |= _token_ids(cfg.llm, style, base)
    vit_name = "vit_config" if style == "hub" else "vision_config"
    for name, part in ((vit_name, _vit_part), (_PARTS[0], _adapter_part), (_PARTS[1], _text_part)):
        before = base.get(name) if own else None
        result[name] = {**(before or {}), **part(cfg, style)}
    if own:
        _keep_declared(cfg, result, base, vit_name)
    result["text_config"]["max_position_embeddings"] = _positions(cfg.llm, base)
    result["tie_word_embeddings"] = result["text_config"]["tie_word_embeddings"] = False
    return result


def _token_ids(llm: LlmConfig, style: ConfigStyle, base: Mapping[str, Any]) -> dict[str, int]:
    places = TOKEN_IDS | (HUB_TOKEN_IDS if style == "hub" else {})
    ids = {name: base.get(name, llm.vocab + place) for name, place in places.items()}
    for name, value in ids.items():
        if value is not None and value >= llm.vocab + llm.extra_vocab:
            raise BadConfig(
                f"{name} {value} is not below {llm.vocab + llm.extra_vocab}, the rows of the embedding; "
                f"use LlmConfig.extra_vocab of at least {max(TOKEN_IDS.values()) + 1}"
            )
    return ids


def _positions(llm: LlmConfig, base: Mapping[str, Any]) -> int:
    known = (base.get("text_config") or {}).get("max_position_embeddings")
    if known is not None:
        return known
    return MAX_POSITIONS if llm.yarn is None else int(llm.yarn.factor * llm.yarn.original_length)


def _keep_declared(cfg: VlmConfig, result: dict[str, Any], base: Mapping[str, Any], vit_name: str) -> None:
    """The number of vision blocks and the feature layers as `base` has them, if they mean ours."""
    name = "vit_layers" if vit_name == "vit_config" else "vision_feature_layer"
    declared = (base.get(vit_name) or {}).get("num_hidden_layers", VISION_DEFAULTS["num_hidden_layers"])
    layers = (base.get(_PARTS[0]) or {}).get(name, ADAPTER_DEFAULTS["vision_feature_layer"])
    same = all(-declared <= layer < declared for layer in layers)
    if vit_name == "vit_config" and same and feature_layers(layers, declared) == cfg.vit.feature_layers:
        result[vit_name]["num_hidden_layers"] = declared
        result[_PARTS[0]][name] = layers


def _vit_part(cfg: VlmConfig, style: ConfigStyle) -> dict[str, Any]:
    vit = cfg.vit
    shared = {
        "hidden_size": vit.width,
        "intermediate_size": vit.mlp,
        "num_hidden_layers": max(vit.feature_layers) + 1,
        "num_attention_heads": vit.heads,
        "num_key_value_heads": vit.heads,
        "head_dim": vit.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": vit.norm_eps,
    }
    size, count = list(vit.image_size), vit.patches
    if style == "hub":
        names = {"image_default_input_size": size, "image_patch_size": vit.patch, "image_num_pos": count}
        return {"model_type": "molmo2", **shared, **names}
    names = {"image_size": size, "patch_size": vit.patch, "num_position_embeddings": count}
    return {"model_type": "molmo2_vision", **shared, **names}


def _adapter_part(cfg: VlmConfig, style: ConfigStyle) -> dict[str, Any]:
    connector = cfg.connector
    shared = {
        "hidden_size": connector.width,
        "num_attention_heads": connector.heads,
        "num_key_value_heads": connector.heads,
        "head_dim": connector.head_dim,
        "hidden_act": "silu",
        "intermediate_size": connector.mlp,
        "text_hidden_size": cfg.llm.width,
    }
    features = list(cfg.vit.feature_layers)
    if style == "hub":
        return {"model_type": "molmo2", "vit_layers": features, "pooling_attention_mask": True, **shared}
    return {"model_type": "molmo2_adapter", "vision_feature_layer": features, **shared}


def _text_part(cfg: VlmConfig, style: ConfigStyle) -> dict[str, Any]:
    llm = cfg.llm
    hub = style == "hub"
    spelt = {"qkv_bias": False, "use_qk_norm": True} if hub else {"attention_bias": False}
    return {
        "model_type": "molmo2_text",
        "hidden_size": llm.width,
        "num_hidden_layers": llm.layers,
        "num_attention_heads": llm.heads,
        "num_key_value_heads": llm.kv_heads,
        "head_dim": llm.head_dim,
        "intermediate_size": llm.mlp,
        "hidden_act": "silu",
        "vocab_size": llm.vocab,
        "additional_vocab_size": llm.extra_vocab,
        "qk_norm_type": {kind: name for name, kind in QK_NORMS.items()}[llm.qk_norm],
        "norm_after": llm.norm == "post",
        "layer_norm_eps" if hub else "rms_norm_eps": llm.norm_eps,
        **spelt,
        **rope_fields(llm, hub),
    }
