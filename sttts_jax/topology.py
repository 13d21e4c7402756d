"""TPU slices by the names that people use, and their devices for the compiler, on machines that have none.

`v5p:4x4x4` is a slice of 4 x 4 x 4 chips. As an accelerator it is called v5p-128: names of v4, v5p and tpu7x count
cores, of which a chip has two; those of v5e (v5litepod) and v6e count chips.
"""

import importlib.util
import math
import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies


@dataclass(frozen=True)
class Family:
    """accelerator: how names of its accelerators begin. axes: of the torus. per_chip: what those names count."""

    accelerator: str
    axes: int
    per_chip: int


FAMILIES = {
    "v4": Family("v4", 3, 2),
    "v5e": Family("v5litepod", 2, 1),
    "v5p": Family("v5p", 3, 2),
    "v6e": Family("v6e", 2, 1),
    "tpu7x": Family("tpu7x", 3, 2),
}
_NAMES = {**{name: name for name in FAMILIES}, "v5litepod": "v5e"}


@dataclass(frozen=True)
class Slices:
    """`slices` slices of `shape` chips each, such as (4, 4, 4)."""

    family: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As it is given to `--topology`, such as "v5p:4x4x4"."""
        return f"{self.family}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of one slice."""
        return math.prod(self.shape)

    @property
    def accelerator(self) -> str:
        """As clouds call one slice, such as "v5p-128"."""
        family = FAMILIES[self.family]
        return f"{family.accelerator}-{self.chips * family.per_chip}"

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def by_topology(text: str, slices: int = 1) -> Slices:
    """Of a text such as "v5p:4x4x4". Raises ValueError with the form for anything else."""
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text)
    if found is None or found[1] not in _NAMES:
        raise ValueError(
            f"--topology {text} is not one: write FAMILY:AxBxC, such as v5p:4x4x4 or v5e:16x16, of "
            f"{', '.join(FAMILIES)}; names such as v5p-128 go to --accelerator"
        )
    family, shape = _NAMES[found[1]], tuple(int(size) for size in found[2].split("x"))
    axes = FAMILIES[family].axes
    if len(shape) != axes or min(shape) < 1:
        raise ValueError(f"--topology {text}: slices of {family} have {axes} axes, such as {_example(family)}")
    return _checked(Slices(family, shape, slices))


def by_accelerator(text: str, slices: int = 1) -> Slices:
    """The slice that clouds give for "v5p-128": Slices("v5p", (4, 4, 4)). Raises ValueError for another text."""
    found = re.fullmatch(r"([a-z0-9]+)-(\d+)", text)
    if found is None or found[1] not in _NAMES:
        raise ValueError(
            f"--accelerator {text} is not one: write FAMILY-N, such as v5p-128 or v5e-256, of {', '.join(FAMILIES)}; "
            "shapes such as v5p:4x4x4 go to --topology"
        )
    family, count = _NAMES[found[1]], int(found[2])
    axes, per_chip = FAMILIES[family].axes, FAMILIES[family].per_chip
    chips, rest = divmod(count, per_chip)
    if rest or chips < 1 or chips & (chips - 1) or (axes == 3 and chips < 4):
        raise ValueError(
            f"--accelerator {text}: no slice surely has this name; give its shape, as in --topology {_example(family)}"
        )
    return _checked(Slices(family, _usual_shape(chips, axes), slices))


def _example(family: str) -> str:
    return f"{family}:4x4x4" if FAMILIES[family].axes == 3 else f"{family}:4x8"


def _usual_shape(chips: int, axes: int) -> tuple[int, ...]:
    """The most cubic one, smaller axes first: 16 -> (4, 4) or (2, 2, 4). A flat one of 4 is written (2, 2, 1)."""
    power = chips.bit_length() - 1
    shape = tuple(2 ** ((power + axis) // axes) for axis in range(axes))
    return (2, 2, 1) if shape == (1, 2, 2) else shape


def _checked(slices: Slices) -> Slices:
    if slices.slices < 1:
        raise ValueError(f"--slices {slices.slices} must be at least 1")
    return slices


def find_compiler(accelerator: str, environment: MutableMapping[str, str] | None = None) -> None:
    """Sets what libtpu reads from the environment when it is loaded, once a process; `accelerator` of the first slice.

    Raises ValueError when libtpu is not installed.
    """
    environment = os.environ if environment is None else environment
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        raise ValueError("compiling for TPUs needs libtpu: pip install 'sttts-jax[aot]'; no TPU is needed")
    wanted = {
        "TPU_LIBRARY_PATH": str(Path(found.origin).with_name("libtpu.so")),
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in wanted.items():
        environment.setdefault(name, value)


def tpu_devices(slices: Slices) -> list[jax.Device]:
    """Devices that programs can be compiled for, and that run none. `find_compiler` comes first.

    Raises ValueError for slices that libtpu does not know.
    """
    given: dict[str, Any] = {"num_slices": slices.slices} if slices.slices > 1 else {}
    if slices.chips == 1:
        given["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(slices.name, platform="tpu", **given).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"libtpu knows no {slices}: {str(error).splitlines()[0]}") from None
