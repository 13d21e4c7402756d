"""What to prune and how: one frozen object, checked before any device is touched."""

import dataclasses
from typing import Self

from sttts_jax.pruning.bias import RESCALES
from sttts_jax.pruning.budget import as_fraction

METHODS = ("scorer", "random", "easy", "reference_tracking", "soft_only", "none")
WITH_SCORER = ("scorer", "soft_only")
REMOVING_NOTHING = ("soft_only", "none")
PACKINGS = ("staircase", "bins")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """STTS and its baselines.

    method              "scorer" (STTS), "random", "easy", "reference_tracking"; "soft_only" (bias, no drop); "none"
    fraction            share of cells removed, a decimal such as "0.5"; text, so that it is exact
    fractions           training only: shares of which each step draws one, () for always `fraction`; so one checkpoint
                        serves every share, and evaluation still takes `fraction`
    packing             "staircase" (exact stream, the default) or "bins" (the paper's)
    refill              bins only: a frame alone in its bin gets its dropped patches back as context (authors' code)
    rescale             how scores become a bias: see `bias.soft_bias`
    across_items        the authors' "previous frame" across the videos of a packed row; off: every video starts afresh
    aux_weight          coefficient c of the temporal loss; 0 is the paper's "no aux" ablation
    aux_stop_gradient   keep the temporal loss out of the features
    positions           LLM position ids after the drop: "dense" (closed up) or "original" (with gaps)
    """

    method: str = "scorer"
    fraction: str = "0.5"
    fractions: tuple[str, ...] = ()
    packing: str = "staircase"
    refill: bool = False
    rescale: str = "affine"
    across_items: bool = False
    aux_weight: float = 0.5
    aux_stop_gradient: bool = False
    positions: str = "dense"

    def __post_init__(self) -> None:
        if isinstance(self.fractions, list | tuple):
            object.__setattr__(self, "fractions", tuple(str(k) for k in self.fractions))

    def check(self) -> Self:
        """Raises ValueError with one sentence; returns self."""
        for name, value, known in (
            ("method", self.method, METHODS),
            ("packing", self.packing, PACKINGS),
            ("rescale", self.rescale, RESCALES),
            ("positions", self.positions, ("dense", "original")),
        ):
            if value not in known:
                raise ValueError(f"pruning.{name}={value!r} is unknown; choose one of {', '.join(known)}")
        as_fraction(self.fraction, "pruning.fraction")
        self._check_fractions()
        if self.refill and self.packing != "bins":
            raise ValueError(
                "pruning.refill=True needs pruning.packing='bins'; the staircase never lets pruned patches back in"
            )
        if self.aux_weight < 0:
            raise ValueError(f"pruning.aux_weight={self.aux_weight} must not be negative")
        return self

    def _check_fractions(self) -> None:
        if not isinstance(self.fractions, tuple):
            raise ValueError(f"pruning.fractions={self.fractions!r} must be a list such as ('0.3', '0.5')")
        if not self.fractions:
            return
        if not self.removes:
            raise ValueError(
                f"pruning.fractions has no meaning for pruning.method={self.method!r}, which removes nothing; "
                "leave it empty"
            )
        if len({as_fraction(k, "pruning.fractions") for k in self.fractions}) < len(self.fractions):
            raise ValueError(f"pruning.fractions={self.fractions} names a share twice; leave one of them out")

    @property
    def has_scorer(self) -> bool:
        """A scorer is part of the model."""
        return self.method in WITH_SCORER

    @property
    def removes(self) -> bool:
        """The method removes cells, whatever their share."""
        return self.method not in REMOVING_NOTHING

    @property
    def removed(self) -> str:
        """The share that is really removed: what the packer and the LLM rows have to know."""
        return self.fraction if self.removes else "0"
