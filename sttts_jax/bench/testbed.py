"""The device at hand, and how much of Molmo2-4B it holds in training and in inference."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from sttts_jax.bench.memory import device_gib, infer_gib, train_gib
from sttts_jax.bench.sizes import thinned
from sttts_jax.bench.workload import Workload
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.presets import preset
from sttts_jax.ops.attention.kernels import choose_kernels

WHOLE = "molmo2-4b"
TINY = "tiny"
SHARES = tuple(map(Fraction, ("1", "3/4", "2/3", "1/2", "1/3", "1/4", "1/6", "1/8")))
ROOM = 0.9  # of the device's memory: the arithmetic is rough


@dataclass(frozen=True)
class Testbed:
    """The device and what it can hold: models of training and of inference, and the words about what is left out."""

    cpu: bool
    preset: str
    dtype: Any
    attention: str
    trained: VlmConfig
    served: VlmConfig
    frames: int
    texts: tuple[int, int]
    whole: bool
    said: tuple[str, ...]

    def load(self, frames: int, videos: int, text: int, remat: str = "full") -> Workload:
        """Rows of the model that is trained, or with remat "none" of the one that is served."""
        vlm = self.trained if remat == "full" else self.served
        return Workload(vlm, frames, videos, text, 1, self.dtype, remat, self.attention)


def testbed() -> Testbed:
    """Molmo2-4B on an accelerator, as much of it as the device holds; tiny shapes on a CPU."""
    platform = jax.default_backend()
    if platform == "cpu":
        tiny = preset(TINY)
        kernels = choose_kernels("auto", platform, jnp.float32, tiny.vit.patches)
        line = "no accelerator: tiny shapes run in the place of Molmo2-4B's; they prove the suite and measure nothing"
        return Testbed(True, TINY, jnp.float32, kernels, tiny, tiny, 4, (8, 24), False, (line,))
    model = preset(WHOLE)
    kernels = choose_kernels("auto", platform, jnp.bfloat16, model.vit.patches)
    bed = Testbed(False, WHOLE, jnp.bfloat16, kernels, model, model, 64, (200, 2250), True, ())
    return fitted(bed, device_gib())


def fitted(bed: Testbed, gib: float) -> Testbed:
    """The testbed with models that a device of `gib` GiB holds, in training and in inference."""
    said, text = [], max(bed.texts)
    trained, need = _largest(bed.trained, lambda m: train_gib(replace(bed, trained=m).load(bed.frames, 2, text)), gib)
    served, _ = _largest(
        bed.served, lambda m: infer_gib(replace(bed, served=m).load(2 * bed.frames, 1, text, "none")), gib
    )
    vit, llm = bed.trained.vit.layers, bed.trained.llm.layers
    if trained != bed.trained:
        said.append(
            f"training all of {bed.preset} on {bed.frames} frames x 2 takes about {need:.0f} GiB and there are "
            f"{gib:.0f}, so {trained.vit.layers} of {vit} ViT and {trained.llm.layers} of {llm} language model blocks "
            f"are trained, with {trained.llm.vocab:,} of {bed.trained.llm.vocab:,} words"
        )
    if served != bed.served:
        said.append(
            f"prefill runs with {served.vit.layers} of {vit} ViT and {served.llm.layers} of {llm} language model blocks"
            f", as many as {gib:.0f} GiB hold"
        )
    whole = bed.whole and not said
    if whole:
        said.append(f"training all of {bed.preset} takes about {need:.0f} of {gib:.0f} GiB: nothing is left out")
    return replace(bed, trained=trained, served=served, whole=whole, said=tuple(said))


def _largest(model: VlmConfig, need: Callable[[VlmConfig], float], gib: float) -> tuple[VlmConfig, float]:
    """(as much of the model as fits, what the whole needs)."""
    for share in SHARES:
        found = model if share == 1 else thinned(model, share)
        if need(found) <= ROOM * gib:
            break
    else:
        raise ValueError(f"the device holds {gib:.1f} GiB, too few for an eighth of the model; use a larger one")
    return found, need(model)
