"""What Molmo2 starts from, against transformers: the tower of SigLIP 2, and Qwen3 and Olmo3 on text alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra")
transformers = pytest.importorskip("transformers", minversion="5.23", reason="needs the parity extra")

from sttts_jax.convert.backbone_config import siglip_config, text_config  # noqa: E402
from sttts_jax.convert.table import qwen3_pieces, siglip_pieces  # noqa: E402
from sttts_jax.models.llm import Llm  # noqa: E402
from sttts_jax.models.vit import Vit  # noqa: E402
from sttts_jax.models.vlm import pixels_to_patches  # noqa: E402
from sttts_jax.ops.attention.row_rule import RowRule  # noqa: E402
from sttts_jax.pruning.config import PruneConfig  # noqa: E402
from sttts_jax.pruning.frame_rows import FrameRows  # noqa: E402
from tests.convert.trees import params_of  # noqa: E402
from tests.parity.conftest import Check  # noqa: E402

pytestmark = pytest.mark.torch
BOUND = 1e-4
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TEXT = {**SIZES, "num_hidden_layers": 4, "vocab_size": 50, "pad_token_id": None, "max_position_embeddings": 512}
LENGTH = 24
WORDS = np.random.default_rng(0).integers(0, 50, (2, LENGTH))


def _lively(model: Any) -> dict[str, np.ndarray]:
    """Gives a model weights that leave nothing of the size of nothing; returns them."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.5 if "embed" in name else parameter[0].numel() ** -0.5))
            else:
                parameter.copy_(0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise)
    return {name: value.numpy() for name, value in model.eval().state_dict().items()}


@functools.cache
def _tower() -> tuple[Any, dict[str, np.ndarray]]:
    """The class of google/siglip2-so400m-patch14-384: one image size, whose last pixels fill no patch."""
    config = transformers.SiglipVisionConfig(
        **SIZES, num_hidden_layers=6, image_size=29, patch_size=3, hidden_act="gelu_pytorch_tanh"
    )
    model = transformers.SiglipVisionModel._from_config(config, attn_implementation="eager")
    return model, _lively(model)


@pytest.mark.parametrize("features", [(4, 1), (0, 2, 3)])
def test_hidden_states_of_siglip(features: tuple[int, ...], check: Check) -> None:
    model, weights = _tower()
    cfg = siglip_config(model.config.to_dict(), features)
    table = siglip_pieces(cfg, weights)
    params = params_of({piece.tensor: weights[piece.tensor] for piece in table}, table)["vit"]
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 29, 29, 3), np.uint8)

    pixels = torch.from_numpy((frames[0] / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        states = model(pixels, output_hidden_states=True).hidden_states
    want = np.concatenate([states[layer + 1].numpy() for layer in features], axis=-1)

    grid = cfg.cell_grid
    patches = pixels_to_patches(jnp.asarray(frames[:, :, :27, :27]), grid, cfg.patch)
    rows = FrameRows(jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
    vit = Vit(cfg, PruneConfig(method="none"))
    out = jax.jit(vit.apply, static_argnums=3)({"params": params}, patches, rows, 2 * cfg.cells)
    got = grid.to_patches(out.features.reshape(2, cfg.cells, cfg.window, -1))
    check("SigLIP 2", f"outputs of blocks {', '.join(map(str, features))}", got, want, BOUND)


def _qwen3(tied: bool) -> Any:
    config = transformers.Qwen3Config(
        **TEXT,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6},
    )
    return transformers.Qwen3ForCausalLM._from_config(config, attn_implementation="eager")


def _olmo3(tied: bool) -> Any:
    """Sliding windows as long as the text, which Molmo2 has none of; YaRN on the layers that have none."""
    yarn = {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2079, "beta_fast": 32.0, "beta_slow": 1.0}
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        "full_attention": {**yarn, "original_max_position_embeddings": 64, "rope_theta": 5e5},
    }
    config = transformers.Olmo3Config(
        **TEXT,
        num_key_value_heads=4,
        sliding_window=LENGTH,
        layer_types=kinds,
        rope_parameters=rope,
        tie_word_embeddings=tied,
    )
    return transformers.Olmo3ForCausalLM._from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["Qwen3", "Olmo3"])
def test_logits_of_language_models(kind: str, tied: bool, check: Check) -> None:
    model = {"Qwen3": _qwen3, "Olmo3": _olmo3}[kind](tied)
    weights = _lively(model)
    cfg = dataclasses.replace(text_config(model.config.to_dict()), extra_vocab=0)
    assert cfg.tied == tied and (cfg.yarn is None) == (kind == "Qwen3")
    table = qwen3_pieces(cfg, weights)
    params = params_of({piece.tensor: weights[piece.tensor] for piece in table}, table)["llm"]

    with torch.inference_mode():
        want = model(torch.from_numpy(WORDS), use_cache=False).logits.numpy()

    def logits(llm: Llm, words: jax.Array) -> jax.Array:
        rule = RowRule.of(jnp.zeros(words.shape, bool), jnp.zeros_like(words))
        positions = jnp.broadcast_to(jnp.arange(LENGTH), words.shape)
        return llm.logits(llm(llm.embed(words), positions, rule)[0])

    run = jax.jit(functools.partial(Llm(cfg).apply, method=logits))
    got = run({"params": params}, jnp.asarray(WORDS, jnp.int32))
    assert np.abs(want).mean() > 0.3
    check(kind, f"logits, {'tied' if tied else 'own'} head", got, want, BOUND)
