"""Every test sees 8 CPU devices, so that meshes, shardings and layouts are tested without an accelerator.

The flag must be in the environment before jax is imported, so nothing above this line may import jax. Tests that need
another count start a process of their own (tests/multiprocess).
"""

import os

_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import sys  # noqa: E402

import pytest  # noqa: E402
from absl import flags  # noqa: E402

from tests.torchvision_build import DeclareOperators  # noqa: E402

sys.meta_path.insert(0, DeclareOperators())
flags.FLAGS.mark_as_parsed()  # grain reads its own flags; unparsed ones are an error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run only where there is one."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import jax

    if jax.default_backend() != "gpu":
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; run with JAX_PLATFORMS=cuda"))
