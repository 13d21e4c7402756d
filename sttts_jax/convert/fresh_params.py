"""Values for parameters that no file holds: what joins a vision tower to a language model, and a scorer."""

import zlib
from collections.abc import Iterable, Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.models.config import VitConfig
from sttts_jax.models.vit import SCORER_LEAVES
from sttts_jax.pruning.frame_rows import FrameRows
from sttts_jax.pruning.scorer import Scorer
from sttts_jax.trees import named_leaves

STD = 0.02  # Molmo2: connector and rows of the added tokens


def fresh_params(
    vit: VitConfig, shapes: Mapping[str, tuple[int, ...]], names: Iterable[str], seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of each leaf, the same for the same seed: as Molmo2 begins, the scorer as its own module.

    Raises ValueError for a leaf that nothing is known of.
    """
    names = list(names)
    scorer = _scorer(vit, seed) if any(name.startswith(SCORER_LEAVES) for name in names) else {}
    for name in names:
        if name in scorer:
            yield name, np.asarray(scorer[name])
        elif name.startswith("connector/") or name == "llm/new_embedding":
            yield name, _normal(name, shapes[name], seed)
        else:
            raise ValueError(f"no file holds the parameter {name}, and it cannot start afresh")


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("_bias"):
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    return rng.standard_normal(shape, np.float32) * np.float32(STD)


def _scorer(vit: VitConfig, seed: int) -> dict[str, jax.Array]:
    frames = FrameRows(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    module = Scorer(vit.heads, vit.head_dim, vit.mlp)
    params = module.init(jax.random.key(seed), jnp.zeros((1, 1, 1, vit.window, vit.width)), frames)["params"]
    return {SCORER_LEAVES + name: leaf for name, leaf in named_leaves(nn.unbox(params)).items()}
