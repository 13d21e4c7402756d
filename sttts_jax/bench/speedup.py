"""One line of a comparison of pruned with unpruned shapes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from sttts_jax.bench.timing import Trial, quartiles


@dataclass(frozen=True)
class SpeedupRow:
    """One line of the result. The contract of the JSON file: names stay, more may come.

    what            scope: layer, tail or tower
    k               share of cells removed
    packing         "staircase" or "bins"; "none" in the rows of the unpruned baseline
    pass_           "pass" in the file: forward or train
    speedup         median over rounds of baseline seconds / variant seconds, and its quartiles in `spread`
    bound           ratio of the FLOPs of the same shapes; `share` is speedup / bound
    peak_gib        temporary memory that the compiler plans, GiB; `peak_ratio` against the baseline
    compilations    executables that all distributions of this variant needed together
    seconds         median, and quartiles in `seconds_spread`
    flops           of one run, analytic, without padding; `flops_per_s` is what was achieved of them
    mfu             flops_per_s against the measured ceiling of a matrix product
    """

    what: str
    k: float
    frames: int
    distribution: str
    packing: str
    pass_: str
    speedup: float
    spread: tuple[float, float]
    bound: float
    share: float
    peak_gib: float
    peak_ratio: float
    compilations: int
    compile_s: float
    seconds: float
    seconds_spread: tuple[float, float]
    flops: float
    flops_per_s: float
    mfu: float

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        return {name.rstrip("_"): value for name, value in dataclasses.asdict(self).items()}


def measured(
    trial: Trial, base: Trial, seconds: np.ndarray, ratios: np.ndarray, bound: float, flops: float, ceiling: float
) -> dict[str, Any]:
    """The fields of a row that come from its times [rounds], their ratios to the baseline's, and the two programs."""
    speedup, *spread = quartiles(ratios)
    middle, *seconds_spread = quartiles(seconds)
    peak, of = trial.compiled.peak_gib, base.compiled.peak_gib
    return {
        "speedup": speedup,
        "spread": tuple(spread),
        "bound": bound,
        "share": speedup / bound,
        "peak_gib": peak,
        "peak_ratio": peak / of if of else 0.0,
        "compile_s": trial.compiled.compile_s,
        "seconds": middle,
        "seconds_spread": tuple(seconds_spread),
        "flops": flops,
        "flops_per_s": flops / middle,
        "mfu": flops / middle / ceiling,
    }
