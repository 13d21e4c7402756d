"""The least time that a step can take: its arithmetic, its traffic to memory and between devices, each by itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from sttts_jax.chips import Chip
from sttts_jax.plan.collectives import Total


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step: of its products at the peak, of HBM and of the slowest part of the network, by mesh axes."""

    compute: float
    hbm: float
    interconnect: dict[str, float]

    @property
    def step(self) -> float:
        """The longest: all that overlaps perfectly, and more than any step reaches."""
        return max(self.compute, self.hbm, sum(self.interconnect.values()))

    @property
    def bound(self) -> str:
        """Which it is."""
        links = sum(self.interconnect.values())
        return max((self.compute, "compute"), (self.hbm, "HBM"), (links, "interconnect"))[1]


def roofline(chip: Chip, flops: float, moved: float, collectives: Iterable[Total], mesh: jax.sharding.Mesh) -> Roofline:
    """flops and moved (bytes to and from HBM): of one device, a step.

    A ring takes all links of the torus that its axes lie along; between slices it takes the data centre's network.
    """
    seconds: dict[str, float] = {}
    for one in collectives:
        name = "+".join(one.axes)
        seconds[name] = seconds.get(name, 0.0) + one.moved / _bandwidth(chip, one.axes, mesh)
    return Roofline(flops / chip.peak, moved / chip.hbm, seconds)


def _bandwidth(chip: Chip, axes: tuple[str, ...], mesh: jax.sharding.Mesh) -> float:
    """Bytes/s that a device sends along these axes of the mesh."""
    outside = [number for number, name in enumerate(mesh.axis_names) if name not in axes]
    index = tuple(0 if number in outside else slice(None) for number in range(len(mesh.axis_names)))
    group = np.atleast_1d(mesh.devices[index]).reshape(-1)
    if chip.network and len({getattr(device, "slice_index", 0) for device in group}) > 1:
        return chip.network
    places = np.array([getattr(device, "coords", (0,)) for device in group])  # [members, axes of the torus]
    return chip.link * max(int((places != places[:1]).any(axis=0).sum()), 1)
