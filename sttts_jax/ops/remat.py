"""What is kept for gradients and what is computed again: policies by name, and arithmetic that never keeps anything."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.ad_checkpoint import checkpoint_name

Arguments = ParamSpec("Arguments")

_ATTENTION = "attention"
_POLICIES = {
    "full": "nothing_saveable",
    "dots": "dots_saveable",
    "dots_no_batch": "dots_with_no_batch_dims_saveable",
    **{
        name: name
        for name in (
            "nothing_saveable",
            "everything_saveable",
            "dots_saveable",
            "checkpoint_dots",
            "dots_with_no_batch_dims_saveable",
            "checkpoint_dots_with_no_batch_dims",
        )
    },
}


def remat_policy(name: str) -> Callable[..., bool] | None:
    """The policy for `jax.checkpoint` / `nn.remat`, or None for "none" (keep what gradients need but `recomputed`).

    "full" recomputes everything, "attention" all but what attention kernels give, which costs little to keep and much
    to make again; "dots" keeps matrix products, "dots_no_batch" those without batch axes; the plain names of
    `jax.checkpoint_policies` work too. Raises ValueError for any other name.
    """
    if name == "none":
        return None
    if name == _ATTENTION:
        return jax.checkpoint_policies.save_only_these_names(_ATTENTION)
    if name not in _POLICIES:
        known = sorted([*_POLICIES, _ATTENTION])
        raise ValueError(f"No remat policy is called {name!r}; use 'none' or one of {known}.")
    return getattr(jax.checkpoint_policies, _POLICIES[name])


def attention_result(x: jax.Array) -> jax.Array:
    """x, marked for the policy "attention": the result and the statistics that a kernel's gradient needs."""
    return checkpoint_name(x, _ATTENTION)


def recomputed(function: Callable[Arguments, jax.Array]) -> Callable[Arguments, jax.Array]:
    """`function` of arrays, of which only the arguments are kept for the gradient.

    For elementwise arithmetic: inside of a scan, JAX keeps every intermediate result that a derivative names (six
    arrays of a GELU's size), and making them again costs less than writing and reading them.
    """
    return functools.wraps(function)(jax.checkpoint(function, prevent_cse=False))
