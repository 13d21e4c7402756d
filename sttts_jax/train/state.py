"""What a run is made of: the model of a bucket, its optimizer, its parameters on the mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sttts_jax.data.schema import RowShape, batch_spec
from sttts_jax.models.vlm import Vlm
from sttts_jax.ops.attention.kernels import choose_kernels
from sttts_jax.sharding import abstract_state, shardings_of
from sttts_jax.train.config import DTYPES, RunConfig
from sttts_jax.train.optimizer import Optimizer, make_optimizer


class TrainState(flax.struct.PyTreeNode):
    """int32 scalars: step = updates tried, skipped = updates in a row that were skipped, all_skipped = in the run."""

    step: Any
    skipped: Any
    all_skipped: Any
    params: Any
    opt: Any


def build_model(run: RunConfig, shape: RowShape, platform: str = "cpu") -> Vlm:
    """The model of one bucket: `shape` fixes the cells kept in a row and the row length.

    `platform` of the devices that it is compiled for decides about kernels; it means nothing to parameters.
    """
    m = run.model
    kernels = choose_kernels(m.attention, platform, DTYPES[m.dtype], run.vlm.vit.patches)
    return Vlm(run.vlm, run.pruning, shape.kept, shape.length, DTYPES[m.dtype], m.remat, kernels)


def abstract_batch(shape: RowShape, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `rows` rows."""
    return {name: jax.ShapeDtypeStruct(dims, dtype) for name, (dims, dtype) in batch_spec(shape, rows).items()}


def init_params(model: Vlm, shape: RowShape, key: jax.Array) -> Any:
    """Fresh parameters, boxed with their logical axis names; trace it (`jax.eval_shape`, `jax.jit`)."""
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in abstract_batch(shape, 1).items()}
    return model.init(key, batch, jax.random.key(0))["params"]


def boxed_state(run: RunConfig, model: Vlm, shape: RowShape) -> tuple[Any, Optimizer]:
    """(abstract TrainState whose leaves carry axis names, its optimizer)."""
    params = jax.eval_shape(lambda key: init_params(model, shape, key), jax.random.key(0))
    optimizer = make_optimizer(run.optimizer.build(run.total_steps, run.pruning.scores), nn.unbox(params))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(count, count, count, params, jax.eval_shape(optimizer.init, params)), optimizer


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A run's model, optimizer, abstract state and shardings on a mesh."""

    model: Vlm
    optimizer: Optimizer
    abstract: TrainState
    shardings: TrainState


def blueprint(run: RunConfig, mesh: jax.sharding.Mesh, shape: RowShape) -> Blueprint:
    """Everything that is known of a run before its first number exists."""
    model = build_model(run, shape, mesh.devices.flat[0].platform)
    boxed, optimizer = boxed_state(run, model, shape)
    return Blueprint(model, optimizer, abstract_state(boxed, mesh), shardings_of(boxed, mesh))


def fresh_state(run: RunConfig, plan: Blueprint, shape: RowShape) -> TrainState:
    """Initialised on the mesh, each shard where it belongs."""

    def make(key: jax.Array) -> TrainState:
        params = nn.unbox(init_params(plan.model, shape, key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, zero, params, plan.optimizer.init(params))

    return jax.jit(make, out_shardings=plan.shardings)(jax.random.key(run.seed))
