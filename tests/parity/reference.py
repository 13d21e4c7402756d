"""Both sides of a comparison: our Vlm, and transformers' Molmo2 loaded from the files that we write."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.convert.molmo2_config import hf_config
from sttts_jax.convert.piece import tensor_shapes, tensors_of
from sttts_jax.convert.table import pieces
from sttts_jax.infer.generate import generate
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.vlm import Vlm
from sttts_jax.pruning.config import PruneConfig
from tests.convert.hf_dirs import Tensors, write_tensors
from tests.convert.trees import params_of
from tests.parity.prompts import Array, Prompt

UNPRUNED = PruneConfig(method="none")


def random_params(cfg: VlmConfig, seed: int = 0) -> Any:
    """A tree for which all activations and logits are of the size of one, and no leaf is constant."""
    rng = np.random.default_rng(seed)
    table = pieces(cfg, "training", scorer=False)  # the spelling that stores a tied head once
    return params_of({name: _lively(name, shape, rng) for name, shape in tensor_shapes(table).items()}, table)


def _lively(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape)
    if len(shape) == 1:
        values = 0.1 * values if name.endswith("bias") else 1 + 0.2 * values
    elif "embedding" not in name or "patch" in name:
        values = values / np.sqrt(shape[-1])
    elif "positional" not in name:
        values = 0.15 * values  # more, and a model with a tied head only repeats itself
    return values.astype(np.float32)


def write_model(folder: Path, params: Any, cfg: VlmConfig, style: Any) -> Path:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True)
    write_tensors(folder, tensors_of(params, pieces(cfg, style, scorer=False)))
    (folder / "config.json").write_text(json.dumps(hf_config(cfg, style)))
    return folder


class Ours:
    """Vlm on a batch of rows; everything compiles once per shape."""

    def __init__(self, cfg: VlmConfig, params: Any, batch: dict[str, Array]):
        self.params = {"params": jax.tree.map(jnp.asarray, params)}
        self.batch = {name: jnp.asarray(value) for name, value in batch.items()}
        frames, length = batch["frames"].shape[1], batch["tokens"].shape[1]
        self.model = Vlm(cfg, UNPRUNED, frames * cfg.vit.cells, length)

    def logits(self) -> Array:
        """float32 [B, U, Y]."""
        return np.asarray(jax.jit(functools.partial(self.model.apply, method=_logits))(self.params, self.batch))

    def loss_and_gradients(self) -> tuple[float, Any]:
        """The mean over token weights without z-loss, and its gradients as a tree of NumPy arrays."""

        def loss(params: Any, batch: Any) -> jax.Array:
            task = self.model.apply(params, batch, method="loss").task
            return task.cross_entropy / task.weight

        value, gradients = jax.jit(jax.value_and_grad(loss))(self.params, self.batch)
        return float(value), jax.tree.map(np.asarray, gradients["params"])

    def greedy(self, count: int) -> Array:
        """int [B, count]."""
        found = generate(self.model, self.params, self.batch, max_new_tokens=count, stop_ids=())
        return np.asarray(found.tokens)


def _logits(vlm: Vlm, batch: Any) -> jax.Array:
    return vlm.llm.logits(vlm(batch)[0])


class Theirs:
    """AutoModelForImageTextToText of a directory, in float32 with eager attention."""

    def __init__(self, folder: Path):
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(1)  # nothing here is large enough for two
        self.model, self.info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        self.model.eval()

    def logits(self, prompt: Prompt) -> Array:
        """float32 [S, Y]."""
        with self.torch.inference_mode():
            return self.model(**self._inputs(prompt), use_cache=False).logits[0].numpy()

    def loss_and_gradients(self, prompts: Sequence[Prompt]) -> tuple[float, Tensors]:
        """As `Ours.loss_and_gradients`; gradients by the native names."""
        torch, total = self.torch, sum(float(prompt.weights.sum()) for prompt in prompts)
        self.model.zero_grad()
        value = 0.0
        for prompt in prompts:
            logits = self.model(**self._inputs(prompt), use_cache=False).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(prompt.targets), reduction="none")
            loss = (losses * torch.from_numpy(prompt.weights)).sum() / total
            loss.backward()
            value += loss.item()
        return value, {name: p.grad.numpy() for name, p in self.model.named_parameters()}

    def greedy(self, prompt: Prompt, count: int) -> Array:
        """int [count]."""
        inputs = self._inputs(prompt)
        settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
        attention = self.torch.ones_like(inputs["input_ids"])
        with self.torch.inference_mode():
            found = self.model.generate(**inputs, attention_mask=attention, **settings)
        return found[0, len(prompt.tokens) :].numpy()

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        tensor, pooling = self.torch.from_numpy, self.torch.from_numpy(prompt.pooling)
        inputs = {
            "input_ids": tensor(prompt.tokens)[None],
            "mm_token_type_ids": tensor(prompt.vision.astype(np.int64))[None],
        }
        if not len(prompt.pixels):
            return inputs
        pixels, cells = tensor(prompt.pixels), prompt.cfg.vit.cell_grid.shape
        if prompt.videos is not None:
            grids = self.torch.tensor([[frames, *cells] for frames in prompt.videos])
            return inputs | {"pixel_values_videos": pixels, "video_token_pooling": pooling, "video_grids": grids}
        # It takes images or videos, not both, but one table of windows serves any mixture, as in training.
        grids = self.torch.tensor([[len(pooling), 1, 0, 0]])
        return inputs | {"pixel_values": pixels, "image_token_pooling": pooling, "image_grids": grids}
