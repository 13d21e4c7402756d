"""Rows of a whole model: what is in a batch of them, what they cost, and whose scores decide what is kept."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from sttts_jax.bench.scopes import prune_config, select
from sttts_jax.data.schema import RowShape, full_rows
from sttts_jax.models import flops
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.vlm import Vlm
from sttts_jax.pruning.budget import n_kept
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.pruning.frame_rows import FrameRows

UNPRUNED = Fraction(0)


@dataclass(frozen=True)
class Workload:
    """B rows, each of `videos` samples: `frames` frames and `text` tokens that are not cells, all with a loss weight.

    `dtype` is the compute's, `remat` a name of `ops.remat`, `attention` one that `choose_kernels` gave.
    """

    vlm: VlmConfig
    frames: int
    videos: int
    text: int
    batch: int
    dtype: Any
    remat: str = "none"
    attention: str = "xla"
    seed: int = 0

    @property
    def widths(self) -> str:
        """The sizes in words."""
        vit, llm = self.vlm.vit, self.vlm.llm
        return f"ViT {vit.width} wide with {vit.layers} blocks, language model {llm.width} with {llm.layers}"

    def shape(self, fraction: Fraction) -> RowShape:
        """The bucket that these rows fill: at fraction 0 their own unpruned length."""
        vit = self.vlm.vit
        length = self.videos * (n_kept(self.frames, fraction, vit.cells) + self.text)
        frames = self.frames * self.videos
        return RowShape(frames, self.videos, length, str(float(fraction)), vit.cells, vit.image_size)

    def prune(self, fraction: Fraction, packing: str) -> PruneConfig:
        """STTS; no pruning at fraction 0."""
        if fraction == 0:
            return PruneConfig(method="none")
        return prune_config(fraction, packing)

    def model(self, fraction: Fraction, packing: str) -> Vlm:
        """The model of the bucket; `scores` of a batch decide what it keeps."""
        shape, prune = self.shape(fraction), self.prune(fraction, packing)
        return Vlm(self.vlm, prune, shape.kept, shape.length, self.dtype, self.remat, self.attention)

    def arrays(self, fraction: Fraction) -> dict[str, np.ndarray]:
        """A batch of the data contract without padding: noise for pixels and words, a sample's cells before its text.

        Noise, because devices slow down less on pictures and weights that are all alike.
        """
        rng, vocab = np.random.default_rng(self.seed), self.vlm.llm.vocab
        batch = full_rows(self.shape(fraction), self.batch, self.videos)
        batch["frames"][:] = rng.integers(0, 256, batch["frames"].shape, np.uint8)
        used = batch["example"] >= 0  # [B, U]
        text = used & ~batch["vision"]
        batch["tokens"][used] = rng.integers(0, vocab, int(used.sum()))
        batch["targets"][text] = rng.integers(0, vocab, int(text.sum()))
        batch["weights"][text] = 1.0
        return batch

    def counts(self, scores: np.ndarray, fraction: Fraction) -> np.ndarray:
        """int [B, F]: survivors of every frame, as the model selects by `scores` [B, F, C]."""
        item = jnp.broadcast_to(jnp.repeat(jnp.arange(self.videos), self.frames), scores.shape[:2])
        rows = FrameRows(item.astype(jnp.int32), jnp.ones(item.shape, bool))
        return np.asarray(select(jnp.asarray(scores), rows, fraction, self.shape(fraction).kept).mask.sum(axis=-1))

    def flops(self, fraction: Fraction, counts: np.ndarray | None, logits: int | None = None) -> list[flops.RowFlops]:
        """Forward FLOPs of each row by part; `logits`: positions of a row that need the head (default: its text)."""
        kept = n_kept(self.frames, fraction, self.vlm.vit.cells)
        length = self.shape(fraction).length
        pairs = self.videos * flops.example_pairs(kept + self.text, kept)
        return [
            flops.row_flops(
                self.vlm,
                frames=self.frames * self.videos,
                kept_cells=None if row is None else row.tolist(),
                tokens=length,
                pairs=pairs,
                loss_tokens=self.videos * self.text if logits is None else logits,
            )
            for row in ([None] * self.batch if counts is None else counts)
        ]
