"""What one process can check of the start of many; tests/multiprocess has the real thing."""

import jax
import pytest

from sttts_jax.distributed import (
    DistributedConfig,
    _detected_processes,
    describe,
    everywhere,
    gather_json,
    init,
    to_host,
)


def test_a_single_process_is_left_alone() -> None:
    said: list[str] = []
    init(DistributedConfig(), out=said.append)
    init(DistributedConfig(processes=1), out=said.append)
    assert not said and not jax.distributed.is_initialized()


def test_a_single_process_is_everybody() -> None:
    assert everywhere(True) and not everywhere(False)
    assert gather_json({"a": [1]}) == [{"a": [1]}]
    assert to_host(jax.numpy.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "1"}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"JAX_NUM_PROCESSES": "4"}, 4),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 1),
        ({"MEGASCALE_NUM_SLICES": "2"}, 2),
    ],
)
def test_counts_of_launchers(environment: dict[str, str], count: int) -> None:
    assert _detected_processes(environment) == count


def test_what_is_printed_names_environment_and_config() -> None:
    text = describe(DistributedConfig(processes=-1), {"SLURM_NTASKS": "8", "HOME": "/x"})
    assert "processes=-1 coordinator=auto" in text and "timeout=1800s" in text and "SLURM_NTASKS=8" in text
    assert "HOME" not in text
    assert "says nothing about other processes" in describe(DistributedConfig(), {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DistributedConfig(processes=-2), "use 0, -1 or the number of processes"),
        (DistributedConfig(coordinator="a:1"), "set the number of processes too"),
        (DistributedConfig(processes=2, coordinator="a:1"), "give each process its number"),
        (DistributedConfig(processes=2, coordinator="a:1", process_id=2), "is not below"),
        (DistributedConfig(timeout_s=0), "at least 1 second"),
    ],
)
def test_contradictions_are_refused(config: DistributedConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        init(config)
