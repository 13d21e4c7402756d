"""Which processes a run has, and which of them this one is: from the config, or from what launchers leave behind.

    by hand        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, all three
    Open MPI       OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK
    SLURM          inside of `srun` alone: SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_JOB_ID, SLURM_LOCALID
    GKE            TPU_PROCESS_ADDRESSES_PATH, else TPU_PROCESS_ADDRESSES, else TPU_WORKER_HOSTNAMES; TPU_WORKER_ID
    TPU VM         the metadata server

The first that is there counts. JAX_COORDINATOR_PORT is another port than the usual one of a cluster.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sttts_jax.processes import metadata
from sttts_jax.processes.config import DistributedConfig

TPU_PORT = 8482  # as JAX has it
_JOB_PORTS = 2**12  # at the end of all ports: a job takes one of them by its number
BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_LOCALID")
_OMPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_GKE = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_SLICES = ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID")
PORT = "JAX_COORDINATOR_PORT"
SHOWN = (*BY_HAND, PORT, "JAX_LOCAL_DEVICE_IDS", *_SLURM, *_OMPI, *_GKE, "TPU_WORKER_ID", *_SLICES)

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where this process stands among those of its run.

    source          who said so
    processes       how many there are; 0: JAX has to ask the cluster
    coordinator     'host:port' of process 0
    local_devices   the accelerators of the machine that are this process's own; (): all
    """

    source: str
    processes: int
    process_id: int = 0
    coordinator: str = ""
    local_devices: tuple[int, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether the run has this process only."""
        return self.processes == 1


ALONE = Place("nothing", 1)
_UNKNOWN = Place("JAX", 0)


def find(
    config: DistributedConfig,
    environment: Environment | None = None,
    ask: Callable[[str], str | None] = metadata.read_attribute,
) -> Place:
    """This process's place. environment: None is the process's own. ask: the metadata server.

    Raises ValueError, one sentence, where what is said is not enough, or is something else than the config says.
    """
    config.check()
    environment = os.environ if environment is None else environment
    if config.processes == 1:
        return ALONE
    if config.coordinator:
        return Place("the config", config.processes, config.process_id, config.coordinator)
    found = _found(environment, ask)
    if config.processes == -1:
        return _UNKNOWN if found.alone else found
    if config.processes and found.processes != config.processes:
        raise ValueError(
            f"distributed.processes={config.processes}, and {found.source} in the environment says {found.processes}; "
            "set distributed.coordinator and distributed.process_id too, or leave distributed.processes at 0"
        )
    return found


def _found(environment: Environment, ask: Callable[[str], str | None]) -> Place:
    finders = (_by_hand, _open_mpi, _slurm, _gke, lambda environment: _tpu_vm(environment, ask))
    for finder in finders:
        place = finder(environment)
        if place is not None:
            return place
    if environment.get(BY_HAND[0]):
        raise ValueError(f"{BY_HAND[0]} is set alone; set {' and '.join(BY_HAND[1:])} too")
    return ALONE


def _by_hand(environment: Environment) -> Place | None:
    given = [name for name in BY_HAND if environment.get(name)]
    if environment.get(BY_HAND[1]) == "1":
        return ALONE
    if not given or given == [BY_HAND[0]]:
        return None
    lacking = [name for name in BY_HAND if name not in given]
    if lacking:
        raise ValueError(f"{' and '.join(given)} are set but not {' and '.join(lacking)}; set all three")
    count, number = (_number(environment, name) for name in BY_HAND[1:])
    address = environment[BY_HAND[0]]
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{BY_HAND[0]}={address!r} has no port; write host:port")
    return _place("JAX_NUM_PROCESSES", count, number, address, _devices(environment))


def _open_mpi(environment: Environment) -> Place | None:
    if not all(environment.get(name) for name in _OMPI):
        return None
    count, number = (_number(environment, name) for name in _OMPI)
    launcher = environment.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]", launcher)
    job = launcher.partition(".")[0]
    port = _job_port(int(job) // _JOB_PORTS) if job.isdigit() else None
    address = _address(environment, (host[1] or host[2]) if host else None, port)
    if address is None and count > 1:
        raise ValueError("this Open MPI does not say where rank 0 runs; set JAX_COORDINATOR_ADDRESS=host:port")
    return _place("Open MPI", count, number, address, _devices(environment, "OMPI_COMM_WORLD_LOCAL_RANK"))


def _slurm(environment: Environment) -> Place | None:
    if not all(environment.get(name) for name in _SLURM):
        return None
    count, number, job = (_number(environment, name) for name in _SLURM[1:4])
    hosts = environment[_SLURM[0]]  # node1,node2 or node[001-004,7],node9
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", hosts)
    if first is None:
        raise ValueError(f"{_SLURM[0]}={hosts!r} names no host; set {', '.join(BY_HAND)}")
    address = _address(environment, first[1] + (first[2] or ""), _job_port(job))
    return _place("SLURM", count, number, address, _devices(environment, "SLURM_LOCALID"))


def _gke(environment: Environment) -> Place | None:
    told = next((name for name in _GKE if environment.get(name)), None)
    if told is None:
        return None
    text = environment[told]
    if told == _GKE[0]:
        try:
            text = Path(text).read_text()
        except OSError as error:
            raise ValueError(f"{told}={text}: cannot be read ({error.strerror})") from None
    hosts = [host for host in re.split(r"[,\s]+", text.strip()) if host]
    if not hosts:
        raise ValueError(f"{told} names no host; set {', '.join(BY_HAND)}")
    return _in_slices(environment, "GKE", hosts, lambda: _number(environment, "TPU_WORKER_ID"), environment.get)


def _tpu_vm(environment: Environment, ask: Callable[[str], str | None]) -> Place | None:
    if not metadata.may_be_there(environment):
        return None
    number = ask("agent-worker-number")
    if number is None:
        return None
    endpoints = ask("worker-network-endpoints")
    if not endpoints or not number.isdigit():
        raise ValueError(
            "the metadata server of this TPU VM does not name the hosts of the slice; start again, or set "
            f"{', '.join(BY_HAND)}"
        )
    parts = [worker.split(":") for worker in endpoints.strip().split(",")]
    hosts = [part[2] if len(part) == 3 else part[0] for part in parts]  # name:id:address, or a name alone
    slices = dict(re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)'?\s*$", ask("tpu-env") or "", re.MULTILINE))
    read = {**slices, **environment}.get
    return _in_slices(environment, "the metadata server", hosts, lambda: int(number), read)


def _in_slices(
    environment: Environment,
    source: str,
    hosts: Sequence[str],
    worker: Callable[[], int],
    read: Callable[[str], str | None],
) -> Place:
    """A place in one slice, whose hosts are given, or in several of the same size."""
    slices = {name: value for name in _SLICES if (value := read(name))}
    count = len(hosts) * (_number(slices, _SLICES[1]) if _SLICES[1] in slices else 1)
    if count == 1:
        return ALONE
    number = worker() + len(hosts) * (_number(slices, _SLICES[2]) if _SLICES[2] in slices else 0)
    first = slices.get(_SLICES[0]) or hosts[0]
    return _place(source, count, number, _address(environment, first.split(":")[0], TPU_PORT), _devices(environment))


def _place(source: str, count: int, number: int, address: str | None, devices: tuple[int, ...]) -> Place:
    if count == 1:
        return ALONE
    if not 0 <= number < count:
        raise ValueError(f"{source} says that this is process {number} of {count}; count from 0 to {count - 1}")
    return Place(source, count, number, address or "", devices)


def _number(values: Environment, name: str) -> int:
    text = values.get(name, "") or ""
    if not text.strip().isdigit():
        raise ValueError(f"{name}={text!r} must be a whole number")
    return int(text)


def _address(environment: Environment, host: str | None, port: int | None) -> str | None:
    """'host:port' of process 0; what the user set wins."""
    told = environment.get(BY_HAND[0])
    if told:
        return told
    port = _number(environment, PORT) if environment.get(PORT) else port
    return None if host is None or port is None else f"{host}:{port}"


def _job_port(job: int) -> int:
    return job % _JOB_PORTS + 2**16 - _JOB_PORTS


def _devices(environment: Environment, local: str = "") -> tuple[int, ...]:
    """Of JAX_LOCAL_DEVICE_IDS; else one by the process's number on its machine, where the launcher has one."""
    told = environment.get("JAX_LOCAL_DEVICE_IDS") or environment.get(local, "")
    if told and not re.fullmatch(r"\d+(,\d+)*", told):
        raise ValueError(f"JAX_LOCAL_DEVICE_IDS={told!r} must be numbers with commas")
    return tuple(map(int, told.split(","))) if told else ()


def describe(config: DistributedConfig, place: Place, environment: Environment | None = None) -> str:
    """What a start is about to do and what it saw, one line a fact. environment: None is the process's own."""
    environment = os.environ if environment is None else environment
    seen = [f"  {name}={environment[name]}" for name in SHOWN if environment.get(name)]
    asked = f"processes={config.processes} coordinator={config.coordinator or 'auto'} process_id={config.process_id}"
    limits = f"timeout={config.timeout_s}s heartbeat={config.heartbeat_s:g}s shutdown={config.shutdown_s}s"
    lines = [f"distributed: config {asked} {limits}", "distributed: environment"]
    lines += seen or ["  says nothing about other processes"]
    if place.processes:
        host, _, port = place.coordinator.rpartition(":")
        who = f"process {place.process_id} of {place.processes}, says {place.source}"
        lines.append(
            f"distributed: {who}; process 0 is on {host}, port {port}, which must be open between the hosts "
            f"({'as set' if config.coordinator or environment.get(BY_HAND[0]) else f'{PORT} sets another'})"
        )
    return "\n".join(lines)
