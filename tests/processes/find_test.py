"""Which processes there are: what every launcher leaves behind, what contradicts itself, what is printed of it."""

import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sttts_jax.processes import metadata
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.find import ALONE, Place, describe, find

AUTO = DistributedConfig()
HAND = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    **{"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"},
    "SLURM_STEP_NODELIST": "node[007-010,12],gpu1",
}
OMPI = {
    **{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "OMPI_MCA_orte_hnp_uri": "4096000.0;tcp://10.0.0.1,10.1.0.1:3491",
}
GKE = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_COORDINATOR_ADDRESS": "s0:80", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ALONE),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, ALONE),  # in sbatch, outside of srun
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ALONE),
        ({"JAX_NUM_PROCESSES": "1"}, ALONE),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, ALONE),
        (HAND, Place("JAX_NUM_PROCESSES", 4, 2, "a:1")),
        ({**SLURM, **HAND}, Place("JAX_NUM_PROCESSES", 4, 2, "a:1")),
        (SLURM, Place("SLURM", 8, 3, f"node007:{5000 % 4096 + 61440}", (1,))),
        ({**SLURM, "SLURM_STEP_NODELIST": "n1,n2"}, Place("SLURM", 8, 3, f"n1:{5000 % 4096 + 61440}", (1,))),
        (
            {**SLURM, "JAX_COORDINATOR_PORT": "7", "JAX_LOCAL_DEVICE_IDS": "0,1"},
            Place("SLURM", 8, 3, "node007:7", (0, 1)),
        ),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "b:2"}, Place("SLURM", 8, 3, "b:2", (1,))),
        (OMPI, Place("Open MPI", 2, 1, f"10.0.0.1:{1000 + 61440}", (0,))),
        (GKE, Place("GKE", 2, 1, "t0:8482")),
        ({**GKE, "TPU_PROCESS_ADDRESSES": "p0:8471,p1:8471,p2:8471,p3:8471"}, Place("GKE", 4, 1, "p0:8482")),
        ({**GKE, **SLICES}, Place("GKE", 4, 3, "s0:8482")),
        ({**GKE, "JAX_COORDINATOR_PORT": "8476"}, Place("GKE", 2, 1, "t0:8476")),
    ],
)
def test_what_launchers_leave_behind(environment: Mapping[str, str], place: Place) -> None:
    assert find(AUTO, environment) == place


def test_a_file_of_addresses_comes_first(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("f0:8471,f1:8471,f2:8471\n")
    environment = {**GKE, "TPU_PROCESS_ADDRESSES": "x,y", "TPU_PROCESS_ADDRESSES_PATH": str(tmp_path / "hosts")}
    assert find(AUTO, environment) == Place("GKE", 3, 1, "f0:8482")
    with pytest.raises(ValueError, match="gone: cannot be read"):
        find(AUTO, {"TPU_PROCESS_ADDRESSES_PATH": str(tmp_path / "gone")})


def test_the_config_comes_before_the_environment() -> None:
    by_config = DistributedConfig(2, "c:9", 1)
    assert find(by_config, HAND) == Place("the config", 2, 1, "c:9")
    assert find(DistributedConfig(processes=1), HAND) == ALONE
    assert find(DistributedConfig(processes=4), HAND).processes == 4
    assert find(DistributedConfig(processes=-1), {}) == Place("JAX", 0)  # Kubernetes, for one


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        (AUTO, {"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES are set but not JAX_COORDINATOR_ADDRESS and JAX_PROC"),
        (AUTO, {"JAX_COORDINATOR_ADDRESS": "a:1"}, "is set alone; set JAX_NUM_PROCESSES and JAX_PROCESS_ID too"),
        (AUTO, {**HAND, "JAX_PROCESS_ID": "4"}, "process 4 of 4; count from 0 to 3"),
        (AUTO, {**HAND, "JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID='x' must be a whole number"),
        (AUTO, {**HAND, "JAX_COORDINATOR_ADDRESS": "a"}, "has no port; write host:port"),
        (AUTO, {**SLURM, "JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS='all' must be numbers"),
        (AUTO, {**OMPI, "OMPI_MCA_orte_hnp_uri": ""}, "does not say where rank 0 runs; set JAX_COORDINATOR_ADDRESS"),
        (AUTO, {"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID='' must be a whole number"),
        (DistributedConfig(processes=3), HAND, "processes=3, and JAX_NUM_PROCESSES in the environment says 4"),
        (DistributedConfig(processes=2), {}, "says 1; set distributed.coordinator and distributed.process_id too"),
        (DistributedConfig(processes=-2), {}, "use 0, -1 or the number of processes"),
        (DistributedConfig(coordinator="a:1"), {}, "set the number of processes too"),
        (DistributedConfig(processes=2, coordinator="a:1"), {}, "give each process its number"),
        (DistributedConfig(processes=2, coordinator="a", process_id=1), {}, "has no port"),
        (DistributedConfig(processes=2, coordinator="a:1", process_id=2), {}, "is not below"),
        (DistributedConfig(timeout_s=0), {}, "timeout_s=0 must be at least 1 second"),
        (DistributedConfig(heartbeat_s=0.5), {}, "heartbeat_s=0.5 must be at least 1 second"),
    ],
)
def test_contradictions_are_refused(config: DistributedConfig, environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(config, environment)


def test_what_is_printed_names_config_environment_and_port() -> None:
    text = describe(AUTO, find(AUTO, SLURM), {**SLURM, "HOME": "/x"})
    assert "processes=0 coordinator=auto" in text and "timeout=1800s" in text and "SLURM_NTASKS=8" in text
    assert "process 3 of 8, says SLURM; process 0 is on node007, port 62344" in text
    assert "JAX_COORDINATOR_PORT sets another" in text and "HOME" not in text
    assert "port 1, which must be open between the hosts (as set)" in describe(AUTO, find(AUTO, HAND), HAND)


class _Metadata(BaseHTTPRequestHandler):
    """The metadata server of worker 1 of 2 in slice 1 of 2."""

    attributes = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
        "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1'\n",
    }

    def do_GET(self) -> None:
        value = self.attributes.get(self.path.rpartition("/")[2])
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    with HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        yield {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        server.shutdown()


def test_a_tpu_vm_asks_its_metadata_server(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(AUTO, server) == Place("the metadata server", 4, 3, "10.9.0.1:8482")
    assert find(AUTO, {**server, "TPU_SKIP_MDS_QUERY": "1"}) == ALONE
    assert find(AUTO, {**server, "JAX_PLATFORMS": "cpu"}) == ALONE
    monkeypatch.setattr(_Metadata, "attributes", {"agent-worker-number": "0", "worker-network-endpoints": "h0,h1"})
    assert find(AUTO, server) == Place("the metadata server", 2, 0, "h0:8482")
    monkeypatch.setattr(_Metadata, "attributes", {"agent-worker-number": "0"})
    with pytest.raises(ValueError, match="does not name the hosts of the slice"):
        find(AUTO, server)
    monkeypatch.setattr(_Metadata, "attributes", {})  # a machine without a TPU
    assert find(AUTO, server) == ALONE


def test_a_metadata_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert metadata.read_attribute("agent-worker-number", 0.2) is None
        assert time.monotonic() - begin < 2
