"""Several processes as one run: a single `init` before any device is touched, and what they tell each other.

With one process nothing is sent.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

# Where launchers say how many processes there are; only read to print and to decide whether to start at all.
_COUNT_VARIABLES = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_SHOWN_VARIABLES = (
    *_COUNT_VARIABLES,
    "JAX_COORDINATOR_ADDRESS",
    "JAX_PROCESS_ID",
    "SLURM_PROCID",
    "SLURM_JOB_NODELIST",
    "OMPI_COMM_WORLD_RANK",
    "TPU_WORKER_ID",
    "TPU_WORKER_HOSTNAMES",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
    "MEGASCALE_COORDINATOR_ADDRESS",
)


@dataclass(frozen=True)
class DistributedConfig:
    """How processes find each other.

    processes       0: as the environment says (one process when it says nothing); -1: let JAX ask the cluster (TPU pods
                    whose environment says nothing); n: exactly n
    coordinator     'host:port', with an explicit number of processes; '' when the cluster knows it
    process_id      of this process, with a coordinator; -1 when the cluster knows it
    timeout_s       seconds to wait for the other hosts, which may start slowly
    """

    processes: int = 0
    coordinator: str = ""
    process_id: int = -1
    timeout_s: int = 1800

    def check(self) -> Self:
        """Itself. Raises ValueError on values that contradict each other."""
        if self.processes < -1:
            raise ValueError(f"distributed.processes={self.processes}; use 0, -1 or the number of processes")
        if self.process_id < -1:
            raise ValueError(f"distributed.process_id={self.process_id}; use -1 or the number of this process")
        if self.timeout_s < 1:
            raise ValueError(f"distributed.timeout_s={self.timeout_s} must be at least 1 second")
        if self.coordinator and self.processes < 1:
            raise ValueError(
                "distributed.coordinator is set but not distributed.processes; set the number of processes too"
            )
        if self.processes > 0 and self.process_id >= self.processes:
            raise ValueError(
                f"distributed.process_id={self.process_id} is not below distributed.processes={self.processes}"
            )
        if self.coordinator and self.process_id < 0:
            raise ValueError(
                "distributed.coordinator is set but not distributed.process_id; give each process its number"
            )
        return self


def _detected_processes(environment: Mapping[str, str]) -> int:
    """The number of processes that the environment announces, 1 when it is silent."""
    counts = [int(environment[name]) for name in _COUNT_VARIABLES if environment.get(name, "").isdigit()]
    counts.append(len([host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]))
    slices = environment.get("MEGASCALE_NUM_SLICES", "")
    return max([1, *counts, int(slices) if slices.isdigit() else 1])


def describe(config: DistributedConfig, environment: Mapping[str, str] | None = None) -> str:
    """What `init` is about to do and what it saw, one line a fact. environment: None is the process's own."""
    environment = os.environ if environment is None else environment
    seen = [f"  {name}={environment[name]}" for name in _SHOWN_VARIABLES if environment.get(name)]
    asked = f"processes={config.processes} coordinator={config.coordinator or 'auto'} process_id={config.process_id}"
    lines = [f"distributed: config {asked} timeout={config.timeout_s}s", "distributed: environment"]
    return "\n".join(lines + (seen or ["  says nothing about other processes"]))


def init(config: DistributedConfig, out: Callable[[str], None] = print) -> None:
    """Joins the other processes; must come before anything that touches a device. Does nothing for a single process.

    Prints what was detected first, so that a start that hangs says what it waits for.
    Raises ValueError on a contradictory config, RuntimeError when the others do not come within `timeout_s`.
    """
    config.check()
    if jax.distributed.is_initialized():
        return
    expected = _detected_processes(os.environ) if config.processes == 0 else config.processes
    if expected == 1:
        return
    out(describe(config))
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator or None,
            num_processes=config.processes if config.processes > 0 else None,
            process_id=config.process_id if config.process_id >= 0 else None,
            initialization_timeout=config.timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"could not join the other processes ({error}); check the lines above, or set distributed.processes, "
            "distributed.coordinator and distributed.process_id"
        ) from error
    out(
        f"distributed: process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} local devices"
    )


def everywhere(here: bool) -> bool:
    """Whether it holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def to_host(x: jax.Array) -> np.ndarray:
    """A global array, whole, on every process; all of them must ask."""
    if jax.process_count() == 1:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def gather_json(value: Any) -> list[Any]:
    """The values of all processes, in their order; each is plain JSON, and all processes must ask."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)  # [bytes], of another length on every process
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(text))))  # [processes]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))  # [processes, longest]
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]
