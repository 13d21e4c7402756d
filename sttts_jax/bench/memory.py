"""What a measurement holds at most, by arithmetic alone, so that a device that is too small is known beforehand."""

import os

import jax
import jax.numpy as jnp

from sttts_jax.bench.timing import GIB
from sttts_jax.bench.workload import UNPRUNED, Workload
from sttts_jax.models.flops import parameter_counts

TRAINED = 16  # bytes of a trained parameter: weight, two moments, gradient, float32 each
SCORES = 3  # matrices of attention scores, float32, that live at once while a block is done
CHUNK = 512  # positions whose attention scores, or whose logits, live at once in the language model, at most


def state_gib(load: Workload) -> float:
    """Weights, moments and gradients of training."""
    return TRAINED * sum(parameter_counts(load.vlm).values()) / GIB


def train_gib(load: Workload) -> float:
    """Training of the unpruned rows with every block recomputed: its state, block inputs, and the work of one block."""
    vit, llm, item = load.vlm.vit, load.vlm.llm, jnp.dtype(load.dtype).itemsize
    patches, tokens = _tokens(load)
    inputs = item * (patches * vit.width * vit.layers + tokens * llm.width * llm.layers)
    return state_gib(load) + (inputs + _work(load, grads=3)) / GIB


def infer_gib(load: Workload) -> float:
    """Prefill of the unpruned rows: weights in the compute dtype, keys and values, and the work of one block."""
    llm, item = load.vlm.llm, jnp.dtype(load.dtype).itemsize
    cache = _tokens(load)[1] * 2 * llm.layers * llm.kv_heads * llm.head_dim
    weights = sum(parameter_counts(load.vlm).values())
    return (item * (weights + cache) + _work(load, grads=1)) / GIB


def _tokens(load: Workload) -> tuple[int, int]:
    """(patches, tokens of the language model) of all rows."""
    shape = load.shape(UNPRUNED)
    return load.batch * shape.frames * load.vlm.vit.patches, load.batch * shape.length


def _work(load: Workload, grads: int) -> float:
    """Bytes of the larger of two blocks, one of the ViT and one of the language model, and of a chunk of logits."""
    vit, llm, item = load.vlm.vit, load.vlm.llm, jnp.dtype(load.dtype).itemsize
    patches, tokens = _tokens(load)
    width = item * grads
    image = 4 * SCORES * patches * vit.patches * vit.heads + width * patches * (6 * vit.width + 2 * vit.mlp)
    rows = load.batch * min(CHUNK, load.shape(UNPRUNED).length)
    text = 4 * SCORES * rows * load.shape(UNPRUNED).length * llm.heads + width * tokens * (6 * llm.width + 3 * llm.mlp)
    features = item * grads * patches * vit.feature_width
    return features + max(image, text) + 4 * SCORES * rows * llm.vocab


def device_gib() -> float:
    """What the first device lets this process hold; of a CPU, the machine's memory."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit / GIB


def check_state(load: Workload) -> None:
    """Raises ValueError when training cannot even hold its weights, moments and gradients."""
    need, have = state_gib(load), device_gib()
    if need > have:
        raise ValueError(
            f"weights, moments and gradients of this model take {need:.1f} GiB and there are {have:.1f}; "
            "give fewer --vit_layers and --llm_layers, or leave out --full_width"
        )
