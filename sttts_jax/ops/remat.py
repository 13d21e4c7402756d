"""What is kept for gradients and what is computed again: policies by name, and arithmetic that never keeps anything."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.ad_checkpoint import checkpoint_name

Arguments = ParamSpec("Arguments")

_ATTENTION = "attention"
_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(_ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat_policy(name: str) -> Callable[..., bool] | None:
    """The policy for `jax.checkpoint` / `nn.remat`, or None for "none" (keep what gradients need but `recomputed`).

    "dots" keeps matrix products, "attention" only what attention kernels give, which costs little to keep and much to
    make again, and "full" nothing. Raises ValueError for any other name.
    """
    if name not in _POLICIES:
        raise ValueError(f"No remat policy is called {name!r}; use one of {', '.join(_POLICIES)}.")
    return _POLICIES[name]


def attention_result(x: jax.Array) -> jax.Array:
    """x, marked for the policy "attention": the result and the statistics that a kernel's gradient needs."""
    return checkpoint_name(x, _ATTENTION)


def recomputed(function: Callable[Arguments, jax.Array]) -> Callable[Arguments, jax.Array]:
    """`function` of arrays, of which only the arguments are kept for the gradient.

    For elementwise arithmetic: inside of a scan, JAX keeps every intermediate result that a derivative names (six
    arrays of a GELU's size), and making them again costs less than writing and reading them.
    """
    return functools.wraps(function)(jax.checkpoint(function, prevent_cse=False))
