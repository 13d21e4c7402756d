"""config.json <-> VlmConfig: both spellings, round trips, what transformers reads of it, and what is refused."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.convert.fields import BadConfig
from sttts_jax.convert.molmo2_config import TOKEN_IDS, feature_layers, hf_config, style_of, vlm_config
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig
from sttts_jax.models.presets import PRESETS, preset
from tests.golden.molmo2_weights import FOLDER, connector_config, llm_config, vit_config

STYLES = ("hub", "native")
RELEASED = [name for name in PRESETS if name != "tiny"]


def _golden() -> dict[str, Any]:
    return json.loads((FOLDER / "config.json").read_text())


def _comparable(cfg: VlmConfig) -> VlmConfig:
    """Less what no config.json says: cells, the place of the scorer, dropout, and that the head is tied."""
    vit = dataclasses.replace(cfg.vit, cell=(3, 3), prune_after=0)
    return dataclasses.replace(cfg, vit=vit, llm=dataclasses.replace(cfg.llm, tied=False, dropout=0.0))


def test_the_golden_config() -> None:
    config = _golden()
    cfg = vlm_config(config)
    assert cfg.vit == vit_config(config, (3, 3)) and cfg.vit.layers == 10 and cfg.vit.feature_layers == (9, 3)
    assert cfg.connector == connector_config(config) and cfg.llm == llm_config(config)
    back = hf_config(cfg, "hub", config)
    for part in ("text_config", "vit_config", "adapter_config"):
        assert back[part].items() >= config[part].items()
    rest = {name: value for name, value in config.items() if not isinstance(value, dict)}
    assert back.items() >= rest.items()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back(name: str, style: Any) -> None:
    config = json.loads(json.dumps(hf_config(preset(name), style)))
    cfg = vlm_config(config)
    assert _comparable(cfg) == _comparable(preset(name)) and style_of(config) == style
    if name in RELEASED:
        assert (cfg.vit.cell, cfg.vit.prune_after) == ((3, 3), 3)
        assert config["image_patch_id"] == preset(name).llm.vocab + 2
    assert config["tie_word_embeddings"] is False and config["text_config"]["tie_word_embeddings"] is False


def test_ids_of_the_released_models() -> None:
    config = hf_config(preset("molmo2-4b"), "hub")
    ids = {name: config[name] for name in ("image_patch_id", "frame_start_token_id", "frame_end_token_id")}
    assert ids == {"image_patch_id": 151_938, "frame_start_token_id": 151_943, "frame_end_token_id": 151_944}
    assert config["image_col_id"] == 151_939 and config["image_low_res_id"] == 151_942
    assert config["text_config"]["max_position_embeddings"] == 36_864
    assert hf_config(preset("molmo2-o-7b"), "hub")["text_config"]["max_position_embeddings"] == 65_536


@st.composite
def configs(draw: Any) -> VlmConfig:
    sizes = st.integers(1, 4)
    layers = draw(st.integers(2, 30))
    features = draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=3, unique=True))
    width, side = draw(sizes), draw(sizes)
    vit = VitConfig(
        width=width,
        heads=draw(sizes),
        head_dim=draw(sizes),
        mlp=draw(sizes),
        layers=max(*features, 1) + 1,
        patch=draw(sizes),
        grid=(side, draw(sizes)),
        norm_eps=draw(st.sampled_from((1e-5, 1e-6))),
        feature_layers=tuple(features) if max(features) > 0 else (1,),
        prune_after=0,
    )
    depth, kv_heads = draw(sizes), draw(sizes)
    scaled = tuple(sorted(draw(st.sets(st.integers(0, depth - 1)))))
    llm = LlmConfig(
        width=draw(sizes),
        layers=depth,
        heads=kv_heads * draw(sizes),
        kv_heads=kv_heads,
        head_dim=2 * draw(sizes),
        mlp=draw(sizes),
        vocab=draw(st.integers(1, 99)),
        extra_vocab=draw(st.integers(9, 20)),
        rope_theta=draw(st.sampled_from((1e4, 5e6))),
        norm=draw(st.sampled_from(("pre", "post"))),
        qk_norm=draw(st.sampled_from(("head", "full"))),
        yarn=YarnConfig(4.0, draw(st.floats(1.0, 2.0)), 32.0, 1.5, 64, scaled) if scaled else None,
    )
    return VlmConfig(vit, ConnectorConfig(width, draw(sizes), draw(sizes), draw(sizes)), llm).check()


@settings(max_examples=60, deadline=None)
@given(cfg=configs(), style=st.sampled_from(STYLES), other=st.sampled_from(STYLES))
def test_any_sizes_come_back(cfg: VlmConfig, style: Any, other: Any) -> None:
    config = hf_config(cfg, style)
    assert _comparable(vlm_config(config)) == _comparable(cfg)
    assert hf_config(vlm_config(config), style, config) == config
    assert _comparable(vlm_config(hf_config(cfg, other, config))) == _comparable(cfg)


def test_a_base_keeps_what_is_not_ours() -> None:
    base = hf_config(preset("molmo2-4b"), "hub") | {"auto_map": {"AutoConfig": "x.Y"}, "dtype": "bfloat16"}
    base |= {"image_patch_id": 151_999, "eos_token_id": 7}
    base["vit_config"] |= {"num_hidden_layers": 27, "float32_attention": True}
    base["adapter_config"]["vit_layers"] = [-3, -9]
    before = copy.deepcopy(base)
    cfg = vlm_config(base)
    assert cfg.vit.layers == 25 and cfg.vit.feature_layers == (24, 18)
    assert hf_config(cfg, "hub", base) == base == before
    native = hf_config(cfg, "native", base)
    assert "auto_map" not in native and native["eos_token_id"] == 7 and native["image_patch_id"] == 151_999
    assert native["vision_config"]["num_hidden_layers"] == 25
    assert native["adapter_config"]["vision_feature_layer"] == [24, 18]


def test_fewer_blocks_than_the_base_declares() -> None:
    base = hf_config(preset("molmo2-4b"), "hub")
    cfg = vlm_config(base)
    small = dataclasses.replace(cfg, vit=dataclasses.replace(cfg.vit, layers=8, feature_layers=(7, 4)))
    config = hf_config(small, "hub", base)
    assert vlm_config(config).vit == small.vit and config["vit_config"]["num_hidden_layers"] == 8


def test_absent_fields_are_those_of_transformers() -> None:
    cfg = vlm_config(
        {"model_type": "molmo2", "adapter_config": {"text_hidden_size": 4096, "intermediate_size": 12_288}}
    )
    eight = preset("molmo2-8b")
    assert cfg.vit == eight.vit and cfg.connector == eight.connector
    assert cfg.llm == dataclasses.replace(eight.llm, dropout=0.0, rope_theta=10_000.0)


def test_prune_after_leaves_a_block_behind_it() -> None:
    config = _golden()
    config["adapter_config"]["vit_layers"] = [-9, -11]
    assert vlm_config(config).vit.prune_after == 2  # blocks 0..3
    assert feature_layers([-3, -9], 27) == (24, 18) and feature_layers([24, 18], 25) == (24, 18)


REFUSED = [
    (("model_type",), "molmo", "config.json.model_type is 'molmo'; only 'molmo2'"),
    (("text_config", "hidden_act"), "gelu", "text_config.hidden_act is 'gelu'"),
    (("text_config", "qkv_bias"), True, "text_config.qkv_bias is True"),
    (("text_config", "use_qk_norm"), False, "text_config.use_qk_norm is False"),
    (("text_config", "qk_norm_type"), "rms", "qk_norm_type is 'rms'"),
    (("text_config", "attention_dropout"), 0.1, "text_config.attention_dropout is 0.1; only 0"),
    (("text_config", "embedding_dropout"), 0.1, "embedding_dropout is 0.1"),
    (("text_config", "hidden_size"), "many", "hidden_size is 'many'; it must be like 4096"),
    (("text_config", "rope_scaling"), {"rope_type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
    (("text_config", "rope_scaling"), {"rope_type": "yarn", "factor": 2.0, "truncate": False}, "truncate is False"),
    (("text_config", "rope_scaling"), {"rope_type": "yarn"}, "YaRN needs factor"),
    (("text_config", "rope_scaling"), "yarn", "'yarn' are no table"),
    (("text_config",), [1], "text_config is no table"),
    (("vit_config", "hidden_act"), "quick_gelu", "vit_config.hidden_act is 'quick_gelu'"),
    (("vit_config", "image_num_pos"), 80, "image_num_pos is 80; only 81"),
    (("vit_config", "num_key_value_heads"), 1, "vit_config.num_key_value_heads is 1; only 2"),
    (("adapter_config", "vit_layers"), [-13], r"\[-13\] must name some of the 12 vision blocks"),
    (("adapter_config", "vit_layers"), [], "must name some"),
    (("adapter_config", "vit_layers"), ["last"], "vit_layers is .*like"),
    (("adapter_config", "hidden_size"), 8, "adapter_config.hidden_size is 8; only 16"),
    (("adapter_config", "text_hidden_size"), 8, "text_hidden_size is 8; only 32"),
    (("adapter_config", "pooling_attention_mask"), False, "pooling_attention_mask is False"),
    (("adapter_config", "image_feature_dropout"), 0.5, "image_feature_dropout is 0.5"),
    (("text_config", "num_key_value_heads"), 3, "heads 4 must be a multiple"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED, ids=lambda x: "-".join(x) if type(x) is tuple else None)
def test_what_our_model_cannot_be(path: tuple[str, ...], value: Any, message: str) -> None:
    config = _golden()
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message) as error:
        vlm_config(config)
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_table() -> None:
    with pytest.raises(BadConfig, match="config.json is no table of fields"):
        vlm_config([1])  # type: ignore[arg-type]


def test_what_molmo2_cannot_be() -> None:
    cfg = preset("molmo2-4b")
    with pytest.raises(BadConfig, match="ConnectorConfig.width 8 is not VitConfig.width 1152"):
        hf_config(dataclasses.replace(cfg, connector=dataclasses.replace(cfg.connector, width=8)), "hub")
    with pytest.raises(BadConfig, match="frame_start_token_id 151943 is not below 151941"):
        hf_config(dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, extra_vocab=5)), "hub")
    with pytest.raises(BadConfig, match="no config.json style is called 'training'"):
        hf_config(cfg, "training")  # type: ignore[arg-type]


def test_yarn_without_its_defaults() -> None:
    config = _golden()
    scaling = {"type": "yarn", "factor": 4.0}
    config["text_config"] |= {"rope_scaling": scaling, "rope_scaling_layers": [1]}
    yarn = vlm_config(config).llm.yarn
    assert yarn is not None and yarn.original_length == 512 and yarn.layers == (1,)
    assert yarn.attention_factor == pytest.approx(1.1386294) and (yarn.beta_fast, yarn.beta_slow) == (32.0, 1.0)
    config["text_config"]["rope_scaling_layers"] = []
    assert vlm_config(config).llm.yarn is None


def _transformers() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("transformers", minversion="5.23")


@pytest.mark.torch
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_the_same(name: str) -> None:
    """Both spellings give it the same model, and what it writes of that is ours again."""
    transformers = _transformers()
    hub, native = (transformers.Molmo2Config(**hf_config(preset(name), style)) for style in STYLES)
    for part in ("vision_config", "adapter_config", "text_config"):
        ours = hf_config(preset(name), "native")[part]
        theirs = getattr(native, part).to_dict()
        assert {key: theirs[key] for key in ours if ours[key] is not None} == {
            key: value for key, value in ours.items() if value is not None
        }
        also = getattr(hub, part).to_dict()
        assert {key: also[key] for key in theirs} == theirs
    assert {key: getattr(native, key) for key in TOKEN_IDS} == {key: getattr(hub, key) for key in TOKEN_IDS}
    written = json.loads(native.to_json_string()), native.to_dict()
    assert all(_comparable(vlm_config(config)) == _comparable(preset(name)) for config in written)
