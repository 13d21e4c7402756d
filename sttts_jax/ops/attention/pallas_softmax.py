"""What the softmax of all Pallas kernels rests on: the dtypes that they take, and stand-ins for infinity."""

import jax
import jax.numpy as jnp

# No subtraction turns them into NaN. Logits of hidden keys are near -FAR, real ones above -NEAR.
FAR, NEAR = 1e30, 1e29
_DTYPES = (jnp.float32, jnp.bfloat16)


def check_dtypes(what: str, *inputs: jax.Array) -> None:
    """Raises ValueError unless all are float32 or all are bfloat16."""
    dtypes = {x.dtype for x in inputs}
    if len(dtypes) > 1 or not dtypes <= set(map(jnp.dtype, _DTYPES)):
        raise ValueError(
            f"{what} wants all float32 or all bfloat16; got {', '.join(str(x.dtype) for x in inputs)}. Cast them."
        )
