"""What every test runs under: set in the environment before jax is imported, and so handed on to what tests start.

Eight CPU devices, so that meshes, shardings and layouts are tested without an accelerator; tests that need another
count start a process of their own (tests/multiprocess). XLA compiles without its optimisations, because these programs
run for milliseconds and would be polished for seconds; tests of what the optimiser makes are marked `optimized`. One
folder keeps compiled programs for all workers of a run and what they start; JAX_COMPILATION_CACHE_DIR names one that
stays.
"""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version

_XLA_FLAGS = {"--xla_force_host_platform_device_count": "8"}
if version("jaxlib").startswith("0.10."):
    # The code generator before the present one takes two thirds of the compilation, and without the libraries' matrix
    # products it takes less again. Later releases know the first no more, and XLA ends a process that names a flag it
    # does not know.
    _XLA_FLAGS |= dict.fromkeys(
        ("--xla_cpu_use_fusion_emitters", "--xla_cpu_use_xnnpack", "--xla_cpu_use_onednn"), "false"
    )
for _name, _value in _XLA_FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_name}={_value}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_FAST = "jax_disable_most_optimizations"
os.environ[_FAST.upper()] = "1"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN_CACHE = None if _CACHE in os.environ else tempfile.mkdtemp(prefix="jax_cache_")  # workers inherit the variable
if _OWN_CACHE:
    os.environ[_CACHE] = _OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Tracing is a third of the run. Programs carry no Python lines, and Python looks for circles less often: a trace makes
# many objects that die together.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
gc.set_threshold(50_000, 20, 100)

import importlib.util  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from absl import flags  # noqa: E402

from tests.once import made_once  # noqa: E402
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures: they compile as their test does."""
    _compile_fast(item.get_closest_marker("optimized") is None)


def _compile_fast(fast: bool) -> None:
    if os.environ[_FAST.upper()] == str(int(fast)):
        return
    os.environ[_FAST.upper()] = str(int(fast))
    if "jax" in sys.modules:
        import jax

        jax.config.update(_FAST, fast)
        jax.clear_caches()  # jit would go on with what it compiled the other way


def pytest_unconfigure() -> None:
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds shapes_video_qa with 24 training, 4 validation and 8 test clips; nobody changes it."""
    from tests.tiny import build_clips

    return made_once(tmp_path_factory, "clips", build_clips)


@pytest.fixture(scope="session")
def runs(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Method -> workdir of a trained model; copies, because evaluation writes into them."""
    from tests.tiny_runs import train_runs

    made = made_once(tmp_path_factory, "runs", lambda folder: train_runs(clips, folder))
    root = tmp_path_factory.mktemp("workdirs")
    return {method: shutil.copytree(made / method, root / method) for method in ("scorer", "none", "random")}


@pytest.fixture(scope="session")
def checkpoints(runs: dict[str, Path]) -> dict[str, Any]:
    """Method -> the `infer.checkpoint.Checkpoint` of that run."""
    from sttts_jax.infer.open import read_checkpoint

    return {name: read_checkpoint(path) for name, path in runs.items()}


@pytest.fixture(scope="session")
def gcs() -> Iterator[Any]:
    """A `fake_gcs.FakeGcs` that serves gs:// in this process and those that it starts; every test takes a bucket."""
    if importlib.util.find_spec("gcsfs") is None:  # not imported yet: it reads the environment as it is
        pytest.skip("needs gcsfs: pip install 'sttts-jax[gcs]'")
    from tests import fake_gcs

    with fake_gcs.serve() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
