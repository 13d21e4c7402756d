"""Several processes as one run: a single `init` before any device is touched, and what they tell each other.

With one process nothing is sent.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.find import describe, find


def init(config: DistributedConfig, out: Callable[[str], None] = print) -> None:
    """Joins the other processes; must come before anything that touches a device. Does nothing for a single process.

    Prints what was detected first, so that a start that hangs says what it waits for.
    Raises ValueError on a contradictory config or environment, RuntimeError when the others do not come within
    `timeout_s`.
    """
    config.check()
    if jax.distributed.is_initialized():
        return
    place = find(config)
    if place.alone:
        return
    out(describe(config, place))
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator or None,
            num_processes=place.processes or None,
            process_id=place.process_id if place.processes else None,
            local_device_ids=place.local_devices or None,
            cluster_detection_method="deactivate" if place.processes else None,
            initialization_timeout=config.timeout_s,
            shutdown_timeout_seconds=config.shutdown_s,
        )
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"could not join the other processes ({error}); check the lines above, or set distributed.processes, "
            "distributed.coordinator and distributed.process_id"
        ) from error
    out(
        f"distributed: process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} local devices"
    )


def check_own(devices: Sequence[Any]) -> None:
    """Raises ValueError where some of the devices belong to processes that this one has not joined: a TPU of several
    hosts shows all of its chips to each of them.
    """
    own = sum(device.process_index == jax.process_index() for device in devices)
    if own < len(devices) and not jax.distributed.is_initialized():
        raise ValueError(
            f"there are {len(devices)} devices, of which this process may use {own} alone, and it knows of no other "
            "process; start the same command on every host, with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID where nothing else tells them of each other"
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
