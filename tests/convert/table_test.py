"""The table between our tree and the tensors of files: total in both directions, the right names, clear refusals."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttts_jax.convert.molmo2_config import TOKEN_IDS, hf_config, vlm_config
from sttts_jax.convert.piece import CheckpointMismatch, Piece, compare, leaf_shapes, tensor_shapes, tensors_of
from sttts_jax.convert.safetensors_files import StoredTensor
from sttts_jax.convert.table import STYLES, ignored_siglip, pieces, qwen3_pieces, scorer_pieces, siglip_pieces
from sttts_jax.data.schema import RowShape
from sttts_jax.models.config import ConnectorConfig, LlmConfig, VitConfig, VlmConfig, YarnConfig
from sttts_jax.models.presets import PRESETS, preset
from sttts_jax.models.vlm import Vlm
from sttts_jax.paths import as_path
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.train.state import init_params
from sttts_jax.trees import named_leaves
from tests.convert.trees import params_of
from tests.golden import molmo2_weights as golden
from tests.models.small import CFG

OLMO_LLM = dataclasses.replace(
    CFG.llm, kv_heads=2, norm="post", qk_norm="full", yarn=YarnConfig(8.0, 1.2, 32.0, 1.0, 64, (1,)), tied=False
)
OLMO = dataclasses.replace(CFG, llm=OLMO_LLM)
CONFIGS = {"tied": CFG, "olmo": OLMO, "tiny": PRESETS["tiny"]}
COUNTS = {"molmo2-4b": (706, 813, 705), "molmo2-8b": (706, 813, 706), "molmo2-o-7b": (674, 769, 674)}
SCORER_TENSORS = 14


@functools.cache
def _tree(cfg: VlmConfig, scorer: bool) -> dict[str, Any]:
    """Shapes of the model's own parameters."""
    shape = RowShape(frames=1, items=1, length=128, fraction="0.5", cells=cfg.vit.cells, size=cfg.vit.image_size)
    prune = PruneConfig() if scorer else PruneConfig(method="none")
    model = Vlm(cfg, prune, shape.kept, shape.length)
    return nn.unbox(jax.eval_shape(lambda key: init_params(model, shape, key), jax.random.key(0)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in named_leaves(tree).items()}


def _numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays in which no number occurs twice."""
    arrays, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size).reshape(shape)
        start += size
    return arrays


def _check_total(table: list[Piece], leaves: dict[str, tuple[int, ...]]) -> None:
    """Every element of the leaves once, every element of the tensors once, and back again."""
    covered = {name: np.zeros(shape, int) for name, shape in leaves.items()}
    for piece in table:
        assert covered[piece.leaf][piece.index].shape == piece.shape
        covered[piece.leaf][piece.index] += not piece.copy
    assert all((count == 1).all() for count in covered.values())
    assert leaf_shapes(table) == {name: leaves[name] for name in leaf_shapes(table)}

    owned = [piece for piece in table if not piece.copy]
    tensors = _numbered(tensor_shapes(owned))
    params = params_of(tensors, owned)
    numbers = np.concatenate([leaf.reshape(-1) for leaf in named_leaves(params).values()])
    assert np.array_equal(np.sort(numbers), np.arange(sum(x.size for x in tensors.values())))
    back = tensors_of(params, owned)
    assert back.keys() == tensors.keys() and all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("scorer", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", CONFIGS)
def test_total_in_both_directions(name: str, style: Any, scorer: bool) -> None:
    cfg = CONFIGS[name]
    _check_total(pieces(cfg, style, scorer), _shapes(_tree(cfg, scorer)))


sizes = st.integers(1, 3)


@st.composite
def configs(draw: Any) -> VlmConfig:
    """Sizes that are easily mixed up: 1 to 3 of everything."""
    layers = draw(st.integers(2, 6))
    features = draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=2, unique=True))
    vit = VitConfig(
        width=draw(sizes),
        heads=draw(sizes),
        head_dim=draw(sizes),
        mlp=draw(sizes),
        layers=max(max(features) + 1, 2),
        patch=draw(sizes),
        grid=(draw(sizes), draw(sizes)),
        cell=(1, 1),
        feature_layers=tuple(features),
        prune_after=0,
    )
    kv_heads = draw(sizes)
    llm = LlmConfig(
        width=draw(sizes),
        layers=draw(sizes),
        heads=kv_heads * draw(sizes),
        kv_heads=kv_heads,
        head_dim=2 * draw(sizes),
        mlp=draw(sizes),
        vocab=draw(sizes),
        extra_vocab=draw(st.integers(0, 2)),
        qk_norm=draw(st.sampled_from(("head", "full"))),
        norm=draw(st.sampled_from(("pre", "post"))),
        tied=draw(st.booleans()),
    )
    return VlmConfig(vit, ConnectorConfig(draw(sizes), draw(sizes), draw(sizes), draw(sizes)), llm).check()


@settings(max_examples=40, deadline=None)
@given(cfg=configs(), style=st.sampled_from(STYLES))
def test_any_sizes(cfg: VlmConfig, style: Any) -> None:
    table = pieces(cfg, style, scorer=True)
    _check_total(table, leaf_shapes(table))
    parts = [*siglip_pieces(cfg.vit), *qwen3_pieces(cfg.llm)]
    _check_total(parts, leaf_shapes(parts))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_piece_keeps_every_bit(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for piece in [*pieces(CFG, "hub", scorer=True), *siglip_pieces(CFG.vit)]:
        raw = rng.integers(0, 256, (*piece.stored[:-1], piece.stored[-1] * np.dtype(dtype).itemsize), np.uint8)
        array = raw.view(dtype)
        back = piece.store(piece.load(array))
        assert back.dtype == dtype and back.shape == piece.stored
        assert np.ascontiguousarray(back).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", COUNTS)
def test_released_models(name: str) -> None:
    cfg = preset(name)
    leaves = _shapes(_tree(cfg, True))
    for style, count in zip(STYLES, COUNTS[name], strict=True):
        table = pieces(cfg, style, scorer=False)
        assert len(tensor_shapes(table)) == count
        with_scorer = pieces(cfg, style, scorer=True)
        assert len(tensor_shapes(with_scorer)) == count + SCORER_TENSORS
        assert {leaf: leaves[leaf] for leaf in leaf_shapes(with_scorer)} == leaf_shapes(with_scorer)
        assert leaf_shapes(with_scorer).keys() == leaves.keys()


def test_shapes_of_the_4b() -> None:
    shapes = tensor_shapes(pieces(preset("molmo2-4b"), "hub", scorer=False))
    block = "model.transformer.blocks.35."
    assert shapes[f"{block}self_attn.att_proj.weight"] == (6144, 2560)
    assert shapes[f"{block}mlp.ff_proj.weight"] == (19_456, 2560)
    assert shapes["model.transformer.wte.new_embedding"] == (128, 2560)
    assert shapes["lm_head.weight"] == (151_936, 2560)
    assert shapes["model.vision_backbone.image_pooling_2d.wq.weight"] == (1152, 2304)
    native = tensor_shapes(pieces(preset("molmo2-4b"), "native", scorer=False))
    assert native["model.language_model.embed_tokens.weight"] == (152_064, 2560)
    count = sum(int(np.prod(shape)) for shape in native.values())
    assert count == 4_850_869_200


def test_golden_weights_give_the_golden_trees() -> None:
    weights, config, _ = golden.load()
    cfg = vlm_config(config)
    params = params_of(weights, pieces(cfg, "hub", scorer=False))
    want = {
        "vit": golden.vit_tree(weights, golden.vit_config(config, (3, 3))),
        "connector": golden.connector_tree(weights, golden.connector_config(config)),
        "llm": golden.llm_tree(weights, golden.llm_config(config)),
    }
    got, want = named_leaves(params), named_leaves(want)
    assert got.keys() == want.keys()
    for name, leaf in got.items():
        np.testing.assert_array_equal(leaf, want[name], err_msg=name)


def test_the_styles_hold_the_same() -> None:
    """The same tree through all three; native rows of q, k, v one below the other are the hub's."""
    table = {style: pieces(OLMO, style, scorer=False) for style in STYLES}
    params = params_of(_numbered(tensor_shapes(table["hub"])), table["hub"])
    hub, native = (tensors_of(params, table[style]) for style in ("hub", "native"))
    block, layer = "model.transformer.blocks.1.", "model.language_model.layers.1."
    qkv = np.concatenate([native[f"{layer}self_attn.{x}_proj.weight"] for x in "qkv"])
    np.testing.assert_array_equal(hub[f"{block}self_attn.att_proj.weight"], qkv)
    up_gate = np.concatenate([native[f"{layer}mlp.{x}_proj.weight"] for x in ("up", "gate")])
    np.testing.assert_array_equal(hub[f"{block}mlp.ff_proj.weight"], up_gate)
    tables = [hub[f"model.transformer.wte.{x}embedding"] for x in ("", "new_")]
    np.testing.assert_array_equal(np.concatenate(tables), native["model.language_model.embed_tokens.weight"])


def test_a_tied_head_is_a_copy() -> None:
    table = pieces(CFG, "hub", scorer=False)
    owned = [piece for piece in table if not piece.copy]
    tensors = tensors_of(params_of(_numbered(tensor_shapes(owned)), owned), table)
    np.testing.assert_array_equal(tensors["lm_head.weight"], tensors["model.transformer.wte.embedding"])
    params_of(tensors, table)
    with pytest.raises(ValueError, match=r"lm_head.weight is not the copy .* untied"):
        params_of(tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1}, table)
    assert not any(piece.copy for piece in pieces(CFG, "training", scorer=False))


def test_a_convolution_becomes_row_column_channel() -> None:
    cfg = CFG.vit
    cfg = dataclasses.replace(cfg, patch=3)
    piece = siglip_pieces(cfg)[0]
    kernel = np.arange(cfg.width * 27).reshape(cfg.width, 3, 3, 3)
    loaded = piece.load(kernel)
    assert piece.tensor == "vision_model.embeddings.patch_embedding.weight" and loaded.shape == (27, cfg.width)
    assert loaded[2 * 9 + 1 * 3 + 2, 5] == kernel[5, 2, 2, 1]  # row 2, column 1, channel 2


def _listing(table: list[Piece], **changes: StoredTensor | None) -> dict[str, StoredTensor]:
    file = as_path("model.safetensors")
    found = {name: StoredTensor("BF16", shape, file, 0, 0) for name, shape in tensor_shapes(table).items()}
    return {name: entry for name, entry in (found | changes).items() if entry is not None}


def test_compare_names_everything_at_once() -> None:
    table = pieces(CFG, "hub", scorer=False)
    assert compare(table, _listing(table)) == table
    position = "model.vision_backbone.image_vit.positional_embedding"
    norm, gone = "model.transformer.ln_f.weight", "model.vision_backbone.image_projector.w1.weight"
    listing = _listing(
        table,
        **{
            gone: None,
            norm: StoredTensor("F64", (16,), as_path("x"), 0, 0),
            position: StoredTensor("F32", (9, 16), as_path("x"), 0, 0),
            "model.extra": StoredTensor("F32", (2,), as_path("x"), 0, 0),
        },
    )
    with pytest.raises(CheckpointMismatch) as error:
        compare(table, listing)
    text = str(error.value)
    for line in (f"{gone} .*missing", rf"{norm} .*F64\[16\]", rf"{position} .*F32\[9, 16\]", "model.extra +no such"):
        assert error.match(line), (line, text)
    assert text.startswith("4 tensors")
    compare(table, _listing(table, extra=StoredTensor("I64", (2,), as_path("x"), 0, 0)), ignored=["extra"])


def test_an_absent_copy_is_no_loss() -> None:
    table = pieces(CFG, "native", scorer=False)
    found = compare(table, _listing(table, **{"lm_head.weight": None}))
    assert found == [piece for piece in table if not piece.copy]
    untied = pieces(OLMO, "native", scorer=False)
    with pytest.raises(CheckpointMismatch, match="lm_head.weight .*missing"):
        compare(untied, _listing(untied, **{"lm_head.weight": None}))


@pytest.mark.parametrize("prefix", ["", "vision_model.", "vision_tower.vision_model.", "vision_tower."])
def test_siglip_with_any_prefix(prefix: str) -> None:
    table = siglip_pieces(CFG.vit, [f"{prefix}embeddings.position_embedding.weight"])
    listing = _listing(table)
    assert f"{prefix}encoder.layers.2.self_attn.out_proj.bias" in listing
    left = [f"{prefix}encoder.layers.{i}.mlp.fc1.weight" for i in (3, 11, 20)]
    left += [f"{prefix}post_layernorm.weight", f"{prefix}head.probe", "logit_scale", "text_model.head.bias"]
    names = [*listing, *left, "other.weight"]
    assert ignored_siglip(CFG.vit, names) == left


def test_qwen3_and_olmo3_names() -> None:
    for prefix in ("", "model."):
        qwen = tensor_shapes(qwen3_pieces(CFG.llm, [f"{prefix}embed_tokens.weight"]))
        assert qwen[f"{prefix}embed_tokens.weight"] == (29, 16) and f"{prefix}layers.1.input_layernorm.weight" in qwen
        leaves = leaf_shapes(qwen3_pieces(CFG.llm))
        assert "llm/new_embedding" not in leaves
    olmo = {piece.tensor: piece.leaf for piece in qwen3_pieces(OLMO.llm)}
    assert olmo["model.layers.0.post_attention_layernorm.weight"] == "llm/blocks/attn_norm"
    assert olmo["model.layers.0.post_feedforward_layernorm.weight"] == "llm/blocks/mlp_norm"


def test_a_scorer_alone() -> None:
    table = scorer_pieces(CFG.vit)
    _check_total(table, {n: s for n, s in _shapes(_tree(CFG, True)).items() if n.startswith("vit/scorer/")})
    shapes = tensor_shapes(table)
    prefix = "vision_backbone.image_vit.transformer.temporal_token_scorer."
    assert shapes[f"{prefix}mlp.w1.weight"] == (24, 32) and shapes[f"{prefix}mlp.w3.weight"] == (1, 24)
    assert shapes[f"{prefix}patch_token_pooler.wo.bias"] == (16,) and len(shapes) == SCORER_TENSORS


def test_unknown_style() -> None:
    with pytest.raises(ValueError, match="no checkpoint style is called 'keras'; use one of hub, native, training"):
        pieces(CFG, "keras", scorer=False)  # type: ignore[arg-type]


@pytest.mark.torch
@pytest.mark.parametrize("name", [*PRESETS, "olmo"])
def test_the_names_and_shapes_are_those_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    cfg = OLMO if name == "olmo" else preset(name)
    config = transformers.Molmo2Config(**hf_config(cfg, "native", dict.fromkeys(TOKEN_IDS, 0)))
    with torch.device("meta"):
        model = transformers.Molmo2ForConditionalGeneration(config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == tensor_shapes(pieces(cfg, "native", scorer=False))


def _listed(model: Any) -> dict[str, StoredTensor]:
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return {name: StoredTensor("F32", shape, as_path("x"), 0, 0) for name, shape in shapes.items()}


@pytest.mark.torch
@pytest.mark.parametrize("part", ["whole", "tower"])
def test_the_names_of_siglip(part: str) -> None:
    """A square image; a text tower, a pooling head and later blocks that are left behind."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision = {**sizes, "num_hidden_layers": 5, "image_size": 12, "patch_size": 3}
    with torch.device("meta"):
        if part == "whole":
            text = {**sizes, "num_hidden_layers": 1, "vocab_size": 9}
            model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
        else:
            model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
    cfg, listing = dataclasses.replace(CFG.vit, patch=3), _listed(model)
    left = ignored_siglip(cfg, listing)
    assert any(".layers.4." in name for name in left) and any("head." in name for name in left)
    table = siglip_pieces(cfg, listing)
    assert compare(table, listing, left) == table


@pytest.mark.torch
@pytest.mark.parametrize("name", ["Qwen3", "Olmo3"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_names_of_language_models(name: str, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    cfg = dataclasses.replace(CFG.llm if name == "Qwen3" else OLMO.llm, heads=2, head_dim=8, tied=tied)
    sizes = {
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "vocab_size": cfg.vocab,
        "tie_word_embeddings": tied,
        "pad_token_id": None,
        **({"head_dim": cfg.head_dim} if name == "Qwen3" else {}),
    }
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes))
    listing = _listed(model)
    table = qwen3_pieces(cfg, listing)
    assert compare(table, listing) == table
