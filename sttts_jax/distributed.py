"""Several processes as one run: `joined` before any device is touched, and what they tell each other.

With one process nothing is sent.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sttts_jax.exit_codes import FAILED, HANG, OthersLost, Stopped, code_of, sentence
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.find import ALONE, Place, describe, find
from sttts_jax.processes.pulse import take_pulse
from sttts_jax.processes.together import Together, begin, together


@contextlib.contextmanager
def joined(config: DistributedConfig, out: Callable[[str], None] = print) -> Iterator[None]:
    """A block in which this process is one of several; must come before anything that touches a device. Does nothing
    for a single process, and inside of another such block.

    Prints what was detected first, so that a start that hangs says what it waits for. From there on all end together:
    an error in the block ends the other processes with the same exit code and its sentence, and so they do this one.

    Raises ValueError on a contradictory config or environment, OthersLost when the others do not come within
    `timeout_s`.
    """
    config.check()
    place = ALONE if jax.distributed.is_initialized() else find(config)
    if place.alone:
        yield
        return
    out(describe(config, place))
    pulse = take_pulse()
    if pulse is not None:
        pulse.start(config.heartbeat_s, _end_without_supervisor)
    _initialize(config, place)
    if pulse is not None:
        pulse.joined()
    group = begin(jax.process_index(), jax.process_count(), config.heartbeat_s, pulse)
    try:
        out(f"distributed: process {group.process} of {group.processes}, {jax.local_device_count()} local devices")
        yield
    except Stopped:
        _leave(group)
        raise
    except BaseException as error:
        _end_the_others(group, error)
        raise
    _leave(group)


def _initialize(config: DistributedConfig, place: Place) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # StopSignals hears signals, and earlier
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator or None,
            num_processes=place.processes or None,
            process_id=place.process_id if place.processes else None,
            local_device_ids=place.local_devices or None,
            cluster_detection_method="deactivate" if place.processes else None,
            initialization_timeout=config.timeout_s,
            heartbeat_timeout_seconds=math.ceil(2 * config.heartbeat_s) + 20,  # ours come first, with a sentence
            shutdown_timeout_seconds=config.shutdown_s,
        )
    except (ValueError, RuntimeError) as error:
        raise OthersLost(
            f"could not join the other processes within distributed.timeout_s={config.timeout_s} s "
            f"({str(error).splitlines()[0]}); check the lines above: every host must run the same command, and reach "
            f"{place.coordinator or 'the coordinator'}"
        ) from error


def _leave(group: Together) -> None:
    """Waits for the others: the coordinator goes with the first process."""
    group.close()
    with contextlib.suppress(RuntimeError):  # one that is lost now is missed no more
        jax.distributed.shutdown()


def _end_the_others(group: Together, error: BaseException) -> None:
    code = code_of(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and code == FAILED:
        group.await_end()  # what collectives raise when another process goes away
    said = sentence(error).splitlines()[0]
    group.tell(code, said if code != FAILED else f"{type(error).__name__}: {said}")


def _end_without_supervisor(what: str) -> None:
    group = together()
    if group is not None:
        group.lost_supervisor(what)
    os._exit(HANG)


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
