"""What all tests of the benchmarks share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _quickly_compiled() -> Iterator[None]:
    """These programs run for milliseconds; XLA would polish each for seconds."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
