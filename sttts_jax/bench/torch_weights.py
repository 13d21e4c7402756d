"""Our parameter tree in the names and layouts of transformers' Molmo2: numpy only, no torch.

Its linear weights are stored [out, in], queries, keys and values apart, blocks one by one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sttts_jax.models.config import LlmConfig, VitConfig, VlmConfig
from sttts_jax.models.vit import cuts, stack_name

Tree = Mapping[str, Any]
Weights = Iterator[tuple[str, np.ndarray]]

VISION = "model.vision_tower."
CONNECTOR = "model.multi_modal_projector."
TEXT = "model.language_model."


def native_weights(params: Tree, cfg: VlmConfig) -> dict[str, np.ndarray]:
    """{"vit", "connector", "llm"} of `models.vlm.Vlm` -> every weight of Molmo2ForConditionalGeneration by name.

    Arrays may be views. A scorer has no counterpart there: ValueError.
    """
    if "scorer" in params["vit"]:
        raise ValueError("transformers' Molmo2 has no scorer; give the parameters of an unpruned model (method none)")
    parts = (
        (VISION, _vit(params["vit"], cfg.vit)),
        (CONNECTOR, _connector(params["connector"])),
        (TEXT, _llm(params["llm"], cfg.llm)),
    )
    named = {prefix + name: value for prefix, weights in parts for name, value in weights}
    return {**named, "lm_head.weight": np.asarray(params["llm"]["embedding" if cfg.llm.tied else "head"])}


def _vit(tree: Tree, cfg: VitConfig) -> Weights:
    yield "positional_embedding", np.asarray(tree["position_embedding"])
    yield from _linear("patch_embedding", tree["patch_embedding"]["kernel"], tree["patch_embedding"]["bias"])
    for first, end in cuts(cfg):
        for i in range(first, end):
            yield from _vit_block(f"layers.{i}.", _numpy(tree[stack_name(first, end)], i - first))


def _vit_block(name: str, block: Tree) -> Weights:
    qkv = block["qkv"]
    for j, letter in enumerate("qkv"):
        yield from _linear(f"{name}self_attn.{letter}_proj", qkv["kernel"][:, j], qkv["bias"][j])
    yield from _linear(f"{name}self_attn.o_proj", block["out"]["kernel"], block["out"]["bias"], inputs=2)
    for n in (1, 2):
        yield f"{name}layer_norm{n}.weight", block[f"norm{n}"]["scale"]
        yield f"{name}layer_norm{n}.bias", block[f"norm{n}"]["bias"]
        yield from _linear(f"{name}mlp.fc{n}", block[f"fc{n}"]["kernel"], block[f"fc{n}"]["bias"])


def _connector(tree: Tree) -> Weights:
    pool, tree = "image_pooling_2d.", _numpy(tree)
    yield from _linear(f"{pool}q_proj", tree["q"], tree["q_bias"])
    for j, letter in enumerate("kv"):
        yield from _linear(f"{pool}{letter}_proj", tree["kv"][:, j], tree["kv_bias"][j])
    yield from _linear(f"{pool}o_proj", tree["out"], tree["out_bias"], inputs=2)
    yield from _mlp("image_projector.", tree)


def _llm(tree: Tree, cfg: LlmConfig) -> Weights:
    tables = [np.asarray(tree[name]) for name in ("embedding", "new_embedding") if name in tree]
    yield "embed_tokens.weight", np.concatenate(tables)
    yield "norm.weight", np.asarray(tree["final_norm"])
    for i in range(cfg.layers):
        yield from _llm_block(f"layers.{i}.", _numpy(tree["blocks"], i))


def _llm_block(name: str, block: Tree) -> Weights:
    yield from _linear(f"{name}self_attn.q_proj", block["q"])
    for j, letter in enumerate("kv"):
        yield from _linear(f"{name}self_attn.{letter}_proj", block["kv"][:, j])
    yield from _linear(f"{name}self_attn.o_proj", block["out"], inputs=2)
    for letter in "qk":
        yield f"{name}self_attn.{letter}_norm.weight", block[f"{letter}_norm"].reshape(-1)
    yield f"{name}input_layernorm.weight", block["attn_norm"]
    yield f"{name}post_attention_layernorm.weight", block["mlp_norm"]
    yield from _mlp(f"{name}mlp.", block)


def _mlp(name: str, block: Tree) -> Weights:
    """SwiGLU: gate and up are one array [E, 2, M] here."""
    yield from _linear(f"{name}gate_proj", block["gate_up"][:, 0])
    yield from _linear(f"{name}up_proj", block["gate_up"][:, 1])
    yield from _linear(f"{name}down_proj", block["down"])


def _linear(name: str, kernel: np.ndarray, bias: np.ndarray | None = None, inputs: int = 1) -> Weights:
    """Kernel [in.., out..], the first `inputs` axes the inputs -> weight [out, in]; bias [out..] -> [out]."""
    kernel = np.asarray(kernel)
    yield f"{name}.weight", kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1).T
    if bias is not None:
        yield f"{name}.bias", np.asarray(bias).reshape(-1)


def _numpy(tree: Any, index: int | None = None) -> Any:
    """The tree as numpy arrays; with `index` that layer of a stack."""
    if isinstance(tree, Mapping):
        return {name: _numpy(leaf, index) for name, leaf in tree.items()}
    return np.asarray(tree) if index is None else np.asarray(tree)[index]
