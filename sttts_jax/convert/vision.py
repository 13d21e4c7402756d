"""Tensors of the vision transformer (Molmo2 in three spellings, SigLIP 2), the connector and the scorer."""

from collections.abc import Iterator
from dataclasses import dataclass

from sttts_jax.convert.piece import Piece, convolution, linear, plain
from sttts_jax.models.config import VitConfig, VlmConfig, cuts, stack_name

CHANNELS = 3


@dataclass(frozen=True)
class VisionNames:
    """Names below a prefix; `block` has "{i}" for the layer. `qkvo` and the rest end in .weight and .bias."""

    position: str
    patch: str
    block: str
    qkvo: tuple[str, str, str, str]
    norm1: str
    norm2: str
    fc1: str
    fc2: str
    convolution: bool = False


HUB = VisionNames(
    position="positional_embedding",
    patch="patch_embedding",
    block="transformer.resblocks.{i}.",
    qkvo=("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    norm1="attention_norm",
    norm2="ffn_norm",
    fc1="feed_forward.w1",
    fc2="feed_forward.w2",
)
NATIVE = VisionNames(
    position="positional_embedding",
    patch="patch_embedding",
    block="layers.{i}.",
    qkvo=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    norm1="layer_norm1",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
SIGLIP = VisionNames(
    position="embeddings.position_embedding.weight",
    patch="embeddings.patch_embedding",
    block="encoder.layers.{i}.",
    qkvo=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    norm1="layer_norm1",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    convolution=True,
)
HUB_CONNECTOR = ("image_pooling_2d.w{}", "image_projector.w1", "image_projector.w3", "image_projector.w2")
NATIVE_CONNECTOR = (
    "image_pooling_2d.{}_proj",
    "image_projector.gate_proj",
    "image_projector.up_proj",
    "image_projector.down_proj",
)


def used_layers(cfg: VitConfig) -> int:
    """Blocks that are built: up to the last one that the connector reads."""
    return max(cfg.feature_layers) + 1


def vision_pieces(cfg: VitConfig, names: VisionNames, prefix: str) -> Iterator[Piece]:
    """The table of `models.vit.Vit` without a scorer."""
    kernel, patch, inputs = "vit/patch_embedding/kernel", f"{prefix}{names.patch}.weight", cfg.patch**2 * CHANNELS
    if names.convolution:
        yield convolution(kernel, patch, cfg.patch, CHANNELS, cfg.width)
    else:
        yield linear(kernel, (), patch, (inputs,), (cfg.width,))
    yield plain("vit/patch_embedding/bias", (), f"{prefix}{names.patch}.bias", (cfg.width,))
    table = (cfg.patches, cfg.width)
    yield plain("vit/position_embedding", (), prefix + names.position, table, table)
    for first, end in cuts(cfg):
        for i in range(first, min(end, used_layers(cfg))):
            yield from _block(cfg, names, prefix + names.block.format(i=i), f"vit/{stack_name(first, end)}", i - first)


def _block(cfg: VitConfig, names: VisionNames, prefix: str, stack: str, layer: int) -> Iterator[Piece]:
    wide, heads, every = (cfg.width,), (cfg.heads, cfg.head_dim), slice(None)
    for norm, name in (("norm1", names.norm1), ("norm2", names.norm2)):
        yield plain(f"{stack}/{norm}/scale", (layer,), f"{prefix}{name}.weight", wide)
        yield plain(f"{stack}/{norm}/bias", (layer,), f"{prefix}{name}.bias", wide)
    for j, name in enumerate(names.qkvo[:3]):
        yield linear(f"{stack}/qkv/kernel", (layer, every, j), f"{prefix}{name}.weight", wide, heads)
        yield plain(f"{stack}/qkv/bias", (layer, j), f"{prefix}{name}.bias", heads)
    for leaf, name, inputs, outputs in (
        ("out", names.qkvo[3], heads, wide),
        ("fc1", names.fc1, wide, (cfg.mlp,)),
        ("fc2", names.fc2, (cfg.mlp,), wide),
    ):
        yield from dense(f"{stack}/{leaf}", (layer,), prefix + name, inputs, outputs)


def dense(leaf: str, index: tuple, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Iterator[Piece]:
    """Kernel and bias of one layer."""
    yield linear(f"{leaf}/kernel", index, f"{name}.weight", inputs, outputs)
    yield plain(f"{leaf}/bias", index, f"{name}.bias", outputs)


def connector_pieces(cfg: VlmConfig, names: tuple[str, str, str, str], prefix: str) -> Iterator[Piece]:
    """The table of `models.connector.Connector`: pooling "{}" for q, k, v, o; then gate, up, down."""
    c, every = cfg.connector, slice(None)
    inputs, heads, wide = (cfg.vit.feature_width,), (c.heads, c.head_dim), (c.width,)
    pool = prefix + names[0]
    for letter, leaf, index, bias in (
        ("q", "q", (), ()),
        ("k", "kv", (every, 0), (0,)),
        ("v", "kv", (every, 1), (1,)),
    ):
        yield linear(f"connector/{leaf}", index, f"{pool.format(letter)}.weight", inputs, heads)
        yield plain(f"connector/{leaf}_bias", bias, f"{pool.format(letter)}.bias", heads)
    yield linear("connector/out", (), f"{pool.format('o')}.weight", heads, wide)
    yield plain("connector/out_bias", (), f"{pool.format('o')}.bias", wide)
    for j in (0, 1):
        yield linear("connector/gate_up", (every, j), f"{prefix}{names[1 + j]}.weight", wide, (c.mlp,))
    yield linear("connector/down", (), f"{prefix}{names[3]}.weight", (c.mlp,), (cfg.llm.width,))


def scorer_block(cfg: VitConfig, prefix: str) -> Iterator[Piece]:
    """The table of `pruning.scorer.Scorer`, in the names of the authors of STTS (arXiv 2603.18004)."""
    wide, heads = (cfg.width,), (cfg.heads, cfg.head_dim)
    pooler = f"{prefix}patch_token_pooler."
    for leaf, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        yield from dense(f"vit/scorer/pooler/{leaf}", (), f"{pooler}w{letter}", wide, heads)
    yield from dense("vit/scorer/pooler/out", (), f"{pooler}wo", heads, wide)
    sizes = (2 * cfg.width, cfg.mlp, cfg.mlp, 1)
    for i in (1, 2, 3):
        yield from dense(f"vit/scorer/fc{i}", (), f"{prefix}mlp.w{i}", (sizes[i - 1],), (sizes[i],))
