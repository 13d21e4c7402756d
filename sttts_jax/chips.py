"""What one device of every accelerator can do, from the vendors' data sheets: the one owner of these numbers.

A row is one JAX device: a chip, but of TPU7x a core, of which a chip has two.
"""

from dataclasses import dataclass

_BOOK = "jax-ml.github.io/scaling-book"
_CLOUD = "cloud.google.com/tpu/docs"
_SHEET = "NVIDIA's data sheet"


@dataclass(frozen=True)
class Chip:
    """One device.

    peak        dense bf16 FLOP/s
    hbm_gib     of memory as it is sold; of TPUs the compiler keeps a little of it (0.25 to 1.25 GiB)
    hbm         bytes/s between memory and the core
    link        bytes/s to the neighbours along one axis of the torus, both directions together; of GPUs, all of NVLink
    network     bytes/s to devices that only a data centre's network reaches, in and out each; None: not known
    clock       of the core, Hz; None where nothing here asks for it
    source      of the numbers
    """

    peak: float
    hbm_gib: float
    hbm: float
    link: float
    network: float | None
    clock: float | None
    source: str


# The key is how jax's device_kind begins. `network`: 2.5e10 bytes/s a host (the book), over its devices. `clock`: the
# peak, over the products that the core's matrix units do at each of its beats.
#                               peak    GiB     hbm      link    network    clock
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip(275e12, 32, 1.23e12, 0.9e11, 6.25e9, 1.05e9, f"{_CLOUD}/v4, {_BOOK}/tpus"),
    "TPU v5 lite": Chip(197e12, 16, 8.1e11, 1.0e11, 3.12e9, 1.5e9, f"{_CLOUD}/v5e, {_BOOK}/tpus"),
    "TPU v5": Chip(459e12, 95, 2.77e12, 2.0e11, 6.25e9, 1.75e9, f"{_CLOUD}/v5p, {_BOOK}/tpus"),
    "TPU v6 lite": Chip(918e12, 32, 1.64e12, 2.0e11, 3.12e9, 1.75e9, f"{_CLOUD}/v6e, {_BOOK}/tpus"),
    "TPU7x": Chip(1153.5e12, 96, 3.69e12, 1.0e11, 3.12e9, 2.2e9, f"half of {_CLOUD}/tpu7x"),
    "NVIDIA A100": Chip(312e12, 80, 2.0e12, 6.0e11, None, None, _SHEET),
    "NVIDIA H100 PCIe": Chip(756e12, 80, 2.0e12, 6.0e11, None, None, _SHEET),
    "NVIDIA H100": Chip(989e12, 80, 3.35e12, 9.0e11, None, None, _SHEET),
    "NVIDIA H200": Chip(989e12, 141, 4.8e12, 9.0e11, None, None, _SHEET),
    "NVIDIA B200": Chip(2250e12, 180, 8.0e12, 1.8e12, None, None, _SHEET),
}
# Other ways to say it.
CHIPS |= {"TPU v5e": CHIPS["TPU v5 lite"], "TPU v5p": CHIPS["TPU v5"], "TPU v6e": CHIPS["TPU v6 lite"]}


def chip_of(device_kind: str) -> Chip | None:
    """The row of a jax device_kind, None when it is not known (a CPU, or a device not in the table)."""
    matches = [prefix for prefix in CHIPS if device_kind.startswith(prefix)]
    return CHIPS[max(matches, key=len)] if matches else None


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, None when it is not known."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.peak
