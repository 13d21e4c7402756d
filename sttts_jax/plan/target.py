"""What a step is compiled for, and its devices in the process that compiles."""

import dataclasses
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax

from sttts_jax.chips import Chip, chip_of
from sttts_jax.compiler_flags import set_compiler_flags
from sttts_jax.topology import Slices, by_accelerator, by_topology, find_compiler, tpu_devices

GIB = 2**30
_OWN_SLICE = ("TPU_", "MEGASCALE_")  # variables that say which slice a TPU machine is part of
PLATFORMS = {"tpu": "cpu", "cpu": "cpu", "gpu": "cuda"}  # what JAX runs on while it compiles for the first


@dataclass(frozen=True)
class Target:
    """platform: "tpu", whose slices need not be there; "cpu", any number of devices; "gpu", those of this machine.

    devices: of "cpu" and "gpu"; 0 is one CPU, and all GPUs.
    """

    platform: str
    slices: Slices | None = None
    devices: int = 0

    @property
    def name(self) -> str:
        """For people."""
        return str(self.slices) if self.slices else f"{self.devices or ''} {self.platform}".strip()

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Target":
        """Of `as_json`, lists in the place of tuples."""
        slices = tree["slices"]
        found = Slices(slices["family"], tuple(slices["shape"]), slices["slices"]) if slices else None
        return cls(tree["platform"], found, tree["devices"])

    def set_environment(self, environment: MutableMapping[str, str]) -> None:
        """What the process that compiles starts with. Raises ValueError where the compiler is not installed."""
        environment["JAX_PLATFORMS"] = PLATFORMS[self.platform]
        if self.slices:
            for name in [name for name in environment if name.startswith(_OWN_SLICE) and name != "TPU_LIBRARY_PATH"]:
                del environment[name]
            find_compiler(self.slices.accelerator, environment)
            set_compiler_flags(self.slices.family, environment)

    def open(self) -> list[jax.Device]:
        """The devices, in the order of the runtime. Raises ValueError where there are none, or not as many."""
        if self.slices:
            return tpu_devices(self.slices)
        if self.platform == "cpu":
            jax.config.update("jax_num_cpu_devices", self.devices or 1)
            return list(jax.devices())
        try:
            found = list(jax.devices(self.platform))
        except RuntimeError:
            raise ValueError("--device gpu compiles for the GPUs of this machine, and JAX finds none here") from None
        if self.devices > len(found):
            raise ValueError(f"--devices {self.devices} is more than the {len(found)} GPUs of this machine")
        return found[: self.devices or None]


def make_target(
    topology: str = "", accelerator: str = "", slices: int = 1, device: str = "", devices: int = 0
) -> Target:
    """The target of one of `topology` ("v5p:4x4x4"), `accelerator` ("v5p-128") and `device` ("cpu", "gpu").

    Raises ValueError unless exactly one is given, and for names that are none.
    """
    if sum(map(bool, (topology, accelerator, device))) != 1:
        raise ValueError(
            "give one of --topology such as v5p:4x4x4, --accelerator such as v5p-128, and --device cpu or gpu"
        )
    if device:
        if device not in ("cpu", "gpu"):
            raise ValueError(f"--device {device} is neither cpu nor gpu; TPUs are named by --topology or --accelerator")
        if slices != 1:
            raise ValueError("--slices is of TPUs; give --devices")
        return Target(device, devices=devices)
    if devices:
        raise ValueError("--devices is of --device; a TPU's topology says how many there are")
    return Target("tpu", by_topology(topology, slices) if topology else by_accelerator(accelerator, slices))


def chip_at(devices: Sequence[jax.Device]) -> Chip | None:
    """What one device can do, None where it is not known.

    The compiler alone knows the cores of a v4 one by one; where one runs, JAX makes one device of both.
    """
    chip = chip_of(devices[0].device_kind)
    places = {(getattr(one, "slice_index", 0), tuple(getattr(one, "coords", (one.id,)))) for one in devices}
    if chip is None or devices[0].device_kind != "TPU v4" or len(places) == len(devices):
        return chip
    halves = {name: getattr(chip, name) / 2 for name in ("peak", "hbm_gib", "hbm", "link")}
    return dataclasses.replace(chip, **halves)


def memory_gib(devices: Sequence[jax.Device]) -> float:
    """Of one device: of a CPU its share of the machine's, of others from the table.

    Raises ValueError where that has no such device.
    """
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB / len(devices)
    chip = chip_at(devices)
    if chip is None:
        raise ValueError(f"the memory of a {devices[0].device_kind} is not known; add it to sttts_jax/chips.py")
    return chip.hbm_gib
