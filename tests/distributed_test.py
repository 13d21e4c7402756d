"""What one process can check of the start of many; tests/multiprocess has the real thing."""

import types

import jax
import pytest

from sttts_jax.distributed import check_own, everywhere, gather_json, joined, to_host
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.together import together


def test_a_single_process_is_left_alone() -> None:
    said: list[str] = []
    for config in (DistributedConfig(), DistributedConfig(processes=1)):
        with joined(config, said.append):
            assert together() is None
    assert not said and not jax.distributed.is_initialized()


def test_a_single_process_is_everybody() -> None:
    assert everywhere(True) and not everywhere(False)
    assert gather_json({"a": [1]}) == [{"a": [1]}]
    assert to_host(jax.numpy.arange(3)).tolist() == [0, 1, 2]


def test_devices_of_processes_that_were_not_joined_are_refused() -> None:
    """Each host of a TPU slice sees the chips of all."""
    check_own(jax.devices())
    chips = [types.SimpleNamespace(process_index=number // 4) for number in range(16)]
    with pytest.raises(ValueError, match="there are 16 devices, of which this process may use 4 alone"):
        check_own(chips)
