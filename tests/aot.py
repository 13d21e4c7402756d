"""Compiling for TPU topologies without a TPU, in a process of its own: libtpu stays in the process that loads it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOPOLOGIES = {"v5e:2x2": "v5litepod-4", "v5p:2x2x1": "v5p-8", "v6e:2x2": "v6e-4"}


def run_for_tpu(code: str, topology: str) -> list[str]:
    """Lines printed by the Python `code`, whose sys.argv[1] is the topology. Skips the test without libtpu."""
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        pytest.skip("needs libtpu: pip install 'jax[tpu]'; no TPU is needed")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",  # these tests are about what the compiler makes for a TPU
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "TPU_LIBRARY_PATH": str(Path(found.origin).with_name("libtpu.so")),
        "TPU_ACCELERATOR_TYPE": TOPOLOGIES[topology],
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    command = [sys.executable, "-c", code, topology]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
