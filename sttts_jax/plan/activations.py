"""What the backward pass keeps of the rows, from the trace of the loss alone."""

from typing import Any

import jax
from jax.extend.core import Var

from sttts_jax.data.schema import RowShape
from sttts_jax.models.vlm import Vlm
from sttts_jax.train.optimizer import Optimizer
from sttts_jax.train.state import abstract_batch


def kept_for_backward(model: Vlm, optimizer: Optimizer, params: Any, shape: RowShape, rows: int, parts: int) -> int:
    """Bytes of the arrays with a row axis that the backward pass of `rows` rows reads, on each of `parts` devices.

    params: abstract. The batch itself, parameters and what is computed again are not among them.
    """
    batch = abstract_batch(shape, rows)

    def backward(params: Any, batch: Any, key: jax.Array) -> Any:
        def loss(trained: Any) -> jax.Array:
            select, dropout = jax.random.split(key)
            variables = {"params": optimizer.joined(trained, params)}
            out = model.apply(variables, batch, select, deterministic=False, method="loss", rngs={"dropout": dropout})
            return out.task.cross_entropy + out.task.z + out.aux

        return jax.vjp(loss, optimizer.trained(params))[1]

    key = jax.eval_shape(lambda: jax.random.key(0))  # nothing can be made on devices that are not there
    jaxpr = jax.make_jaxpr(backward)(params, batch, key).jaxpr
    given = set(jaxpr.invars)
    found = {var for var in jaxpr.outvars if isinstance(var, Var) and var not in given}
    shapes: list[Any] = [var.aval for var in found]
    return sum(x.size * x.dtype.itemsize for x in shapes if rows in x.shape[:2]) // parts
