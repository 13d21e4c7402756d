"""Hub names and layouts of Molmo2 -> our parameter trees, for golden files; linear weights are stored [out, in]."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig
from tests.golden.stts_weights import from_reference

FOLDER = Path(__file__).parent / "molmo2"
VISION = "model.vision_backbone."


def load() -> tuple[dict[str, np.ndarray], dict, dict[str, np.ndarray]]:
    """(weights by hub name, hub config, recorded inputs and outputs)."""
    outputs = dict(np.load(FOLDER / "outputs.npz"))
    return load_file(FOLDER / "weights.safetensors"), json.loads((FOLDER / "config.json").read_text()), outputs


def llm_config(hub: dict) -> LlmConfig:
    """Our config of a hub `text_config`."""
    text = hub["text_config"]
    return LlmConfig(
        width=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        mlp=text["intermediate_size"],
        vocab=text["vocab_size"],
        extra_vocab=text["additional_vocab_size"],
        rope_theta=text["rope_theta"],
        norm_eps=text["layer_norm_eps"],
        norm="post" if text["norm_after"] else "pre",
        qk_norm={"qwen3": "head", "olmo": "full"}[text["qk_norm_type"]],
        tied=text["tie_word_embeddings"],
    )


def vit_config(hub: dict, cell: tuple[int, int]) -> VitConfig:
    """Our config of a hub `vit_config`: only the blocks that are stored."""
    vit = hub["vit_config"]
    taps = tuple(vit["num_hidden_layers"] + layer for layer in hub["adapter_config"]["vit_layers"])
    side, patch = vit["image_default_input_size"][0], vit["image_patch_size"]
    return VitConfig(
        width=vit["hidden_size"],
        heads=vit["num_attention_heads"],
        head_dim=vit["head_dim"],
        mlp=vit["intermediate_size"],
        layers=max(taps) + 1,
        patch=patch,
        grid=(side // patch, side // patch),
        cell=cell,
        feature_layers=taps,
    )


def connector_config(hub: dict) -> ConnectorConfig:
    """Our config of a hub `adapter_config`."""
    adapter = hub["adapter_config"]
    return ConnectorConfig(
        adapter["hidden_size"], adapter["num_attention_heads"], adapter["head_dim"], adapter["intermediate_size"]
    )


def _in_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """[H d, in] -> [in, H, d]."""
    return np.moveaxis(weight.reshape(heads, -1, weight.shape[1]), -1, 0)


def llm_tree(weights: dict[str, np.ndarray], cfg: LlmConfig) -> dict:
    """The tree of `models.llm.Llm`."""
    q_rows, kv_rows = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim

    def block(i: int) -> dict[str, np.ndarray]:
        w = {k.removeprefix(f"model.transformer.blocks.{i}."): v for k, v in weights.items()}
        q, k, v = np.split(w["self_attn.att_proj.weight"], [q_rows, q_rows + kv_rows])
        up, gate = np.split(w["mlp.ff_proj.weight"], 2)
        full = cfg.qk_norm == "full"
        return {
            "attn_norm": w["attn_norm.weight"],
            "mlp_norm": w["ff_norm.weight"],
            "q": _in_heads(q, cfg.heads),
            "kv": np.stack([_in_heads(k, cfg.kv_heads), _in_heads(v, cfg.kv_heads)], axis=1),
            "q_norm": w["self_attn.q_norm.weight"].reshape((cfg.heads, -1) if full else -1),
            "k_norm": w["self_attn.k_norm.weight"].reshape((cfg.kv_heads, -1) if full else -1),
            "out": w["self_attn.attn_out.weight"].T.reshape(cfg.heads, cfg.head_dim, -1),
            "gate_up": np.stack([gate.T, up.T], axis=1),
            "down": w["mlp.ff_out.weight"].T,
        }

    blocks = [block(i) for i in range(cfg.layers)]
    tree = {
        "embedding": weights["model.transformer.wte.embedding"],
        "new_embedding": weights["model.transformer.wte.new_embedding"],
        "final_norm": weights["model.transformer.ln_f.weight"],
        "blocks": {name: np.stack([b[name] for b in blocks]) for name in blocks[0]},
    }
    return tree if cfg.tied else {**tree, "head": weights["lm_head.weight"]}


def connector_tree(weights: dict[str, np.ndarray], cfg: ConnectorConfig) -> dict:
    """The tree of `models.connector.Connector`."""
    pool = {k.removeprefix(f"{VISION}image_pooling_2d."): v for k, v in weights.items()}
    project = {k.removeprefix(f"{VISION}image_projector."): v for k, v in weights.items()}
    shape = (cfg.heads, cfg.head_dim)
    return {
        "q": _in_heads(pool["wq.weight"], cfg.heads),
        "q_bias": pool["wq.bias"].reshape(shape),
        "kv": np.stack([_in_heads(pool[f"w{n}.weight"], cfg.heads) for n in "kv"], axis=1),
        "kv_bias": np.stack([pool[f"w{n}.bias"].reshape(shape) for n in "kv"]),
        "out": pool["wo.weight"].T.reshape(*shape, -1),
        "out_bias": pool["wo.bias"],
        "gate_up": np.stack([project["w1.weight"].T, project["w3.weight"].T], axis=1),
        "down": project["w2.weight"].T,
    }


def vit_tree(weights: dict[str, np.ndarray], cfg: VitConfig) -> dict:
    """The tree of `models.vit.Vit` without a scorer."""
    prefix = f"{VISION}image_vit."
    return from_reference({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, cfg)
