"""What every comparison of pruned with unpruned shapes is given, and what follows from it on the device at hand."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sttts_jax.bench.distributions import FROM_FILE, Scores, file_scores, scores_by_name
from sttts_jax.bench.record import place, versions
from sttts_jax.bench.scopes import BenchShapes
from sttts_jax.bench.sizes import bench_vlm
from sttts_jax.bench.workload import Workload
from sttts_jax.models.config import VitConfig, VlmConfig
from sttts_jax.ops.attention.kernels import choose_kernels
from sttts_jax.ops.remat import remat_policy
from sttts_jax.train.config import DTYPES


@dataclass(frozen=True)
class Settings:
    """The arguments that `bench pruning`, `train` and `infer` share, by their names.

    frames         T of a video, a comparison for each; `batch` rows at once
    fractions      shares of cells to remove; `packings` of pruning.config.PACKINGS
    distributions  of the scores; `scores`: a file with real ones, those of the distribution FROM_FILE
    dtype          of the compute, None: float32 on a CPU, else bfloat16
    attention      kernels by name, "auto": those of the platform
    full_width     the preset's own sizes without accelerator, too
    """

    preset: str
    frames: Sequence[int]
    batch: int
    fractions: Sequence[Fraction]
    packings: Sequence[str]
    distributions: Sequence[str]
    scores: str | None
    rounds: int
    dtype: str | None
    attention: str
    full_width: bool
    seed: int

    @property
    def reduce(self) -> bool:
        """Whether a wide preset is measured at a quarter of its width."""
        return jax.default_backend() == "cpu" and not self.full_width

    @property
    def compute_dtype(self) -> Any:
        """The compute's."""
        return DTYPES[self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")]

    def kernels(self, patches: int) -> str:
        """Those of a ViT of N patches. Raises ValueError for an unknown name."""
        return choose_kernels(self.attention, jax.default_backend(), self.compute_dtype, patches)

    def draws(self, frames: int, grid: tuple[int, int], videos: int = 1) -> Scores:
        """Scores [B, V F, C] by k and distribution. A file is read here, so that a bad one stops the run early."""
        fixed = {}
        if self.scores:
            real = file_scores(self.scores, frames, grid)
            fixed[FROM_FILE] = np.tile(real, (self.batch, videos, 1))
        return scores_by_name(self.distributions, self.seed, self.batch, videos, frames, grid[0] * grid[1], fixed)

    def model(
        self, vit: Mapping[str, int], llm: Mapping[str, int], say: Callable[[str], None]
    ) -> tuple[VlmConfig, bool]:
        """`whole_model` of the preset with these sizes."""
        return whole_model(self.preset, self.reduce, vit, llm, say)

    def load(self, vlm: VlmConfig, frames: int, videos: int, text: int, remat: str) -> Workload:
        """Rows of a whole model. Raises ValueError for unknown kernels or rematerialisation."""
        remat_policy(remat)
        kernels = self.kernels(vlm.vit.patches)
        return Workload(vlm, frames, videos, text, self.batch, self.compute_dtype, remat, kernels, self.seed)

    def head(
        self, sizes: VitConfig | VlmConfig, held: Workload | BenchShapes, reduced: bool, ceiling: float, command: str
    ) -> dict[str, Any]:
        """Where and on what rows were measured; `ceiling` is the FLOP/s of a matrix product that `mfu` refers to."""
        return {
            **place(command),
            "dtype": jnp.dtype(self.compute_dtype).name,
            "sizes": dataclasses.asdict(sizes),
            "reduced": reduced,
            "batch": self.batch,
            "seed": self.seed,
            "rounds": self.rounds,
            "remat": held.remat,
            "attention": held.attention,
            "matmul_flops_per_s": ceiling,
            **versions(),
        }


def whole_model(
    preset: str, reduce: bool, vit: Mapping[str, int], llm: Mapping[str, int], say: Callable[[str], None]
) -> tuple[VlmConfig, bool]:
    """(sizes, `vit` and `llm` in the place of the preset's; whether they were reduced), which is said."""
    vlm, reduced = bench_vlm(preset, reduce=reduce, vit=vit, llm=llm)
    if reduced:
        say(
            f"no accelerator: {preset} runs at a quarter of its width (ViT {vlm.vit.width}, language model "
            f"{vlm.llm.width}) with {vlm.vit.layers} and {vlm.llm.layers} blocks; --full_width runs it whole"
        )
    return vlm, reduced
