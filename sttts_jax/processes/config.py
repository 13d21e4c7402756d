"""How the processes of a run find each other, and how long they wait for each other."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class DistributedConfig:
    """How processes find each other, and how long they wait for each other.

    processes       0: as the environment says (one process when it says nothing); -1: several, and JAX asks the cluster
                    where nothing is known here; n: exactly n
    coordinator     'host:port' of process 0, with an explicit number of processes; '' when the cluster knows it
    process_id      of this process, with a coordinator; -1 when the cluster knows it
    timeout_s       seconds to wait for the other hosts, which may start slowly
    heartbeat_s     seconds without a sign of life of a process, after which all end; it need not be making steps
    shutdown_s      seconds to wait for the others at the end of a run
    """

    processes: int = 0
    coordinator: str = ""
    process_id: int = -1
    timeout_s: int = 1800
    heartbeat_s: float = 60.0
    shutdown_s: int = 120

    def check(self) -> Self:
        """Itself. Raises ValueError on values that contradict each other."""
        if self.processes < -1:
            raise ValueError(f"distributed.processes={self.processes}; use 0, -1 or the number of processes")
        if self.process_id < -1:
            raise ValueError(f"distributed.process_id={self.process_id}; use -1 or the number of this process")
        for name in ("timeout_s", "heartbeat_s", "shutdown_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"distributed.{name}={getattr(self, name)} must be at least 1 second")
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
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"distributed.coordinator={self.coordinator!r} has no port; write host:port")
        return self
