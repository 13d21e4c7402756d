"""Rematerialisation policies by name, so that a config can hold them."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

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
    """The policy for `jax.checkpoint` / `nn.remat`, or None for "none" (keep all activations, no remat at all).

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
