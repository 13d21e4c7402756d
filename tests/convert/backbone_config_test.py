"""config.json of SigLIP 2, Qwen3 and Olmo3: the released models that start from them, and what is refused."""

import copy
import dataclasses
import json
from typing import Any

import pytest

from sttts_jax.convert.backbone_config import siglip_config, text_config, vlm_of_backbones
from sttts_jax.convert.fields import BadConfig
from sttts_jax.models.presets import preset

SIGLIP2 = {  # as google/siglip2-so400m-patch14-384 has it
    "architectures": ["SiglipModel"],
    "model_type": "siglip",
    "text_config": {"hidden_size": 1152, "model_type": "siglip_text_model", "vocab_size": 256_000},
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
QWEN3 = {  # Qwen3-4B-Instruct-2507
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 262_144,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5_000_000,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151_936,
}
OLMO3 = {  # Olmo-3-7B
    "model_type": "olmo3",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "layer_types": ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(32)],
    "max_position_embeddings": 65_536,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "rope_theta": 500_000,
    "sliding_window": 4096,
    "vocab_size": 100_278,
}


def test_parts_make_the_released_models() -> None:
    four = preset("molmo2-4b")
    cfg = vlm_of_backbones(SIGLIP2, QWEN3)
    assert cfg == dataclasses.replace(four, llm=dataclasses.replace(four.llm, dropout=0.0))
    assert siglip_config(SIGLIP2["vision_config"]) == four.vit  # type: ignore[arg-type]
    olmo = preset("molmo2-o-7b").llm
    assert text_config(OLMO3) == dataclasses.replace(olmo, dropout=0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip2"}, "model_type is 'siglip2'; .*fixed image size"),
        ({"model_type": "siglip_vision_model", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "siglip_vision_model", "hidden_size": 10}, "hidden_size 10 is no multiple"),
        ({"model_type": "siglip_vision_model", "num_hidden_layers": 4}, "must name some of the 4"),
    ],
)
def test_towers_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        siglip_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; .* 'qwen3' or 'olmo3'"),
        ({**QWEN3, "use_sliding_window": True}, "use_sliding_window is True"),
        ({**QWEN3, "attention_bias": True}, "attention_bias is True"),
        ({**QWEN3, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
    ],
)
def test_language_models_that_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        text_config(config)


def _transformers() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers", minversion="5.23")


@pytest.mark.torch
@pytest.mark.parametrize("config", [QWEN3, OLMO3], ids=["qwen3", "olmo3"])
def test_transformers_writes_text_configs_that_are_read(config: dict[str, Any]) -> None:
    transformers = _transformers()
    kinds = {"qwen3": transformers.Qwen3Config, "olmo3": transformers.Olmo3Config}
    theirs = kinds[config["model_type"]](**copy.deepcopy(config))
    assert text_config(json.loads(theirs.to_json_string())) == text_config(config)
    tower = transformers.SiglipConfig(**copy.deepcopy(SIGLIP2))
    assert siglip_config(json.loads(tower.to_json_string())) == siglip_config(SIGLIP2)
