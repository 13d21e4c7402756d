"""What the compilers of TPUs and GPUs are told when a process loads them: one table, a set a platform.

The sets stay apart: what one chip gains by, another hangs at. They are flags that users of these chips publish
(MaxText, Google's tpu-recipes), accepted by libtpu 0.0.42 and 0.0.52 and jaxlib 0.10 and 0.11; none has been timed on a
device yet. A user's own value of a flag wins. A compiler ends its process at a flag that it does not know; so its file
is looked through for every name before.
"""

import functools
import glob
import importlib.util
import mmap
import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

from absl import logging

TPU, GPU = "LIBTPU_INIT_ARGS", "XLA_FLAGS"  # the variables that the compilers read


class Flag(NamedTuple):
    """A name without dashes, a value, and what it is for."""

    name: str
    value: str
    why: str


_GATHER = Flag(
    "xla_enable_async_all_gather", "true", "parameters of fsdp are gathered for the next layer during this one"
)
_FUSION = "xla_tpu_enable_async_collective_fusion"
_VMEM = Flag(
    "xla_tpu_scoped_vmem_limit_kib",
    "65536",
    "a fusion may use 64 MiB of the core's fast memory instead of 16: both products of an MLP become one",
)
# It made 52 more programs of a step at 64 frames, with which the compiler did not end in 25 minutes.
_WHOLE = Flag(
    "xla_jf_spmd_threshold_for_windowed_einsum_mib",
    "1000000",
    "no product becomes a loop over the shards of its weights, in steps of a sum of 1152 / fsdp terms",
)

FLAGS: dict[str, tuple[Flag, ...]] = {
    "v4": (_WHOLE, _GATHER),
    "v5e": (
        _VMEM,
        _WHOLE,
        _GATHER,
        # Newer compilers refuse these three elsewhere: "incorrect results, hang, SDC".
        Flag(_FUSION, "true", "collectives run inside of the fusions beside them"),
        Flag(f"{_FUSION}_fuse_all_gather", "true", "those that gather parameters, too"),
        Flag(f"{_FUSION}_multiple_steps", "true", "over several fusions where one is too short"),
    ),
    "v5p": (
        _VMEM,
        _WHOLE,
        _GATHER,
        Flag("xla_enable_async_all_reduce", "true", "gradients are summed while the layer before is computed"),
        Flag("xla_tpu_enable_async_all_to_all", "true", "the embedding lookup's exchange runs beside computation"),
        Flag("xla_tpu_megacore_fusion_allow_ags", "false", "no gather inside of a fusion of both cores, which waits"),
    ),
    "v6e": (_VMEM, _WHOLE, _GATHER),
    "tpu7x": (
        _VMEM,
        _WHOLE,
        # Collectives run on its SparseCores by default.
        Flag("xla_tpu_bf16_emission_mode", "NATIVE_EMISSION", "bfloat16 stays bfloat16 in vector units"),
        Flag(
            "xla_tpu_enable_sparse_core_collective_aggregator", "true", "small collectives become one; asked for below"
        ),
        Flag("xla_tpu_enable_latency_hiding_layer_scheduler", "true", "collectives overlap with neighbouring layers"),
        Flag("xla_tpu_enable_layer_scheduler_for_dependent_collectives", "true", "those that wait for others, too"),
    ),
    "slices": (  # beside those of the chip, where the network of a data centre lies between chips
        Flag("xla_tpu_enable_data_parallel_all_reduce_opt", "true", "sums between slices overlap with the next update"),
        Flag("xla_tpu_data_parallel_opt_different_sized_ops", "true", "also where their arrays differ in size"),
    ),
    "gpu": (
        Flag("xla_gpu_enable_latency_hiding_scheduler", "true", "collectives overlap with computation"),
        Flag("xla_gpu_all_gather_combine_threshold_bytes", "134217728", "few large messages: about a layer's bytes"),
        Flag("xla_gpu_reduce_scatter_combine_threshold_bytes", "67108864", "the same for gradients"),
        Flag("xla_gpu_all_reduce_combine_threshold_bytes", "1073741824", "the same for what every device keeps"),
    ),
}
# How TPU_ACCELERATOR_TYPE begins.
_TYPES = {"v4-": "v4", "v5litepod-": "v5e", "v5p-": "v5p", "v6e-": "v6e", "tpu7x-": "tpu7x"}
_GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus


def set_compiler_flags(platform: str = "", environment: MutableMapping[str, str] | None = None) -> None:
    """Adds the flags of a platform, one of FLAGS, to what its compiler reads; must come before JAX touches a device.

    platform: "" is the accelerator of this machine, and nothing without one. environment: None is the process's own,
    which no signature must show: `help` prints defaults. What the installed compiler does not know is left out with a
    warning. Raises ValueError for such a flag of the user's, which would end the process.
    """
    environment = os.environ if environment is None else environment
    platform = platform or platform_here(environment)
    if not platform:
        return
    variable = GPU if platform == "gpu" else TPU
    library = compiler_library(variable)
    words = environment.get(variable, "").split()
    given = {_name(word) for word in words}
    foreign = sorted(given - known_flags(library, given))
    if foreign:
        raise ValueError(
            f"{variable} names {', '.join(foreign)}, which {library} does not know, and it would end the process; "
            "remove it"
        )
    wanted = [flag for flag in flags_of(platform, environment) if not {flag.name, f"no{flag.name}"} & given]
    known = known_flags(library, [flag.name for flag in wanted])
    left_out = [flag.name for flag in wanted if flag.name not in known]
    if left_out:
        logging.warning("%s does not know %s; the run goes on without", library, ", ".join(left_out))
    environment[variable] = " ".join([*words, *(f"--{f.name}={f.value}" for f in wanted if f.name in known)])


def flags_of(platform: str, environment: Mapping[str, str]) -> tuple[Flag, ...]:
    """Those of the table, with those of several slices where the environment tells of them."""
    count = environment.get("MEGASCALE_NUM_SLICES", "")
    several = platform != "gpu" and count.isdigit() and int(count) > 1
    return FLAGS[platform] + (FLAGS["slices"] if several else ())


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]


def platform_here(environment: Mapping[str, str]) -> str:
    """The accelerator that JAX would take here, one of FLAGS; "" for none that is known. Loads nothing of JAX where
    there is no TPU.
    """
    asked = environment.get("JAX_PLATFORMS", "")
    if asked and not set(asked.split(",")) & {"tpu", "cuda", "gpu"}:
        return ""
    told = environment.get("TPU_ACCELERATOR_TYPE", "")
    chip = next((chip for start, chip in _TYPES.items() if told.startswith(start)), "") or _chip_on_the_bus()
    if chip:
        return chip
    cuda = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "gpu" if cuda and os.path.exists("/dev/nvidiactl") else ""


def _chip_on_the_bus() -> str:
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor")
    if all(Path(file).read_text().strip() != _GOOGLE for file in vendors):
        return ""
    from jax._src import hardware_utils

    version = hardware_utils.num_available_tpu_chips_and_device_id()[1]
    return version.name if version is not None and version.name in FLAGS else ""


def compiler_library(variable: str) -> Path | None:
    """The file of the compiler that reads a variable, None where it is not installed."""
    package, file = ("libtpu", "libtpu.so") if variable == TPU else ("jaxlib", "libjax_common.so")
    found = importlib.util.find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).with_name(file)
    return path if path is not None and path.exists() else None


def known_flags(library: Path | None, names: Iterable[str]) -> set[str]:
    """Those that stand in the compiler's file as the name of a flag does; all where there is no file to look into."""
    if library is None:
        return set(names)
    return {name for name in names if _stands_in(library, name) or _stands_in(library, name.removeprefix("no"))}


@functools.cache
def _stands_in(library: Path, name: str) -> bool:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(f"\0{name}\0".encode()) >= 0
