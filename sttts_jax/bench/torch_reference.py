"""transformers' own Molmo2 with our weights: what our forward pass is timed against. The one module that imports torch.

weights = tensors_of(params, pieces(cfg, "native", scorer=False))
reference = TorchMolmo2(cfg, share(weights), "sdpa")
reference.whole(row)      # float32 [1, Y], the logits of the last token
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from sttts_jax.convert.molmo2_config import TOKEN_IDS, hf_config
from sttts_jax.models.config import VlmConfig

INSTALL = 'pip install "sttts-jax[parity]"'
ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class TorchInputs:
    """One video and its text as torch wants them; C cells of W patches a frame, N patches, S tokens.

    pixels float32 [F, N, 3 patch^2] normalised; pooling int [F C, W] index into F N, -1 for none; grid (rows, columns)
    of cells; tokens int [S]; vision bool [S]; x float32 [S, E], the embedded row that the language model reads alone;
    features float32 [F, N, 2 D], what the connector reads alone.
    """

    pixels: np.ndarray
    pooling: np.ndarray
    grid: tuple[int, int]
    tokens: np.ndarray
    vision: np.ndarray
    x: np.ndarray
    features: np.ndarray


def import_torch() -> Any:
    """(torch, transformers); one sentence says what to install where they or their Molmo2 are missing."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(f"the comparison needs torch and transformers ({error.name} is missing): {INSTALL}") from error
    if not hasattr(transformers, "Molmo2ForConditionalGeneration"):
        raise ValueError(f"transformers {transformers.__version__} has no Molmo2; upgrade it: {INSTALL}")
    return torch, transformers


class TorchMolmo2:
    """Molmo2ForConditionalGeneration in float32 on the CPU. Methods give numpy's or torch's arrays, without gradients.

    `weights`: every tensor by its name, from `share`; several models may have the same. `attention`: one of ATTENTIONS.
    """

    def __init__(self, cfg: VlmConfig, weights: dict[str, Any], attention: str):
        self.torch, transformers = import_torch()
        config = transformers.Molmo2Config(**config_fields(cfg), attn_implementation=attention)
        self.model = transformers.Molmo2ForConditionalGeneration(config).eval()
        self.model.load_state_dict(weights, strict=True, assign=True)
        self.layers = cfg.vit.feature_layers

    def inputs(self, row: TorchInputs) -> dict[str, dict[str, Any]]:
        """The arguments of every method by its name."""
        tensor = self.torch.from_numpy
        types = {"mm_token_type_ids": tensor(row.vision.astype(np.int64))[None]}
        pooling = tensor(row.pooling.astype(np.int64))
        pixels = tensor(row.pixels)
        grid = tensor(np.array([[len(row.pixels), *row.grid]]))
        return {
            "vit": {"pixels": pixels},
            "connector": {"features": tensor(row.features), "pooling": pooling},
            "llm": {"inputs_embeds": tensor(row.x)[None], **types},
            "whole": {
                "input_ids": tensor(row.tokens.astype(np.int64))[None],
                "pixel_values_videos": pixels,
                "video_token_pooling": pooling,
                "video_grids": grid,
                **types,
            },
        }

    def call(self, part: str, inputs: dict[str, Any]) -> Any:
        """The part's output tensor: features [F, N, 2 D], pooled [F C, E], or logits [1, Y] of the last token."""
        with self.torch.inference_mode():
            return getattr(self, f"_{part}")(**inputs)

    def _vit(self, pixels: Any) -> Any:
        out = self.model.model.vision_tower(pixels, output_hidden_states=True)
        return self.torch.cat([out.hidden_states[layer + 1] for layer in self.layers], dim=-1)

    def _connector(self, features: Any, pooling: Any) -> Any:
        return self.model.model.multi_modal_projector(features, pooling).last_hidden_state

    def _llm(self, **inputs: Any) -> Any:
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]

    _whole = _llm


def share(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Contiguous float32 copies as tensors, for any number of `TorchMolmo2`."""
    torch, _ = import_torch()
    return {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in weights.items()}


def config_fields(cfg: VlmConfig) -> dict[str, Any]:
    """Arguments of transformers' Molmo2Config: the three ids that a video row needs are the first added ones."""
    extra = cfg.llm.extra_vocab
    if extra < 3:
        raise ValueError(f"LlmConfig.extra_vocab is {extra}; a video row needs 3 ids beyond the vocabulary")
    first = cfg.llm.vocab
    ids = dict.fromkeys(TOKEN_IDS, first + 2)
    return hf_config(cfg, "native", ids | {"image_patch_id": first, "frame_start_token_id": first + 1})
