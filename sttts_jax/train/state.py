"""What a run is made of: the model of a bucket, its optimizer, its parameters on the mesh."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from sttts_jax.data.schema import RowShape, batch_spec
from sttts_jax.models.vlm import Vlm
from sttts_jax.ops.attention.kernels import choose_kernels
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.sharding import MIN_SIZE, abstract_state, shardings_of
from sttts_jax.train.config import DTYPES, ModelConfig, RunConfig
from sttts_jax.train.optimizer import Optimizer, OptimizerConfig, make_optimizer


class TrainState(flax.struct.PyTreeNode):
    """int32 scalars: step = updates tried, skipped = updates in a row that were skipped, all_skipped = in the run."""

    step: Any
    skipped: Any
    all_skipped: Any
    params: Any
    opt: Any


def build_model(config: ModelConfig, pruning: PruneConfig, shape: RowShape, platform: str = "cpu") -> Vlm:
    """The model of one bucket: `shape` fixes the cells kept in a row and the row length.

    `platform` of the devices that it is compiled for decides about kernels; it means nothing to parameters.
    """
    vlm, dtype = config.vlm, DTYPES[config.dtype]
    kernels = choose_kernels(config.attention, platform, dtype, vlm.vit.patches)
    return Vlm(vlm, pruning, shape.kept, shape.length, dtype, config.remat, kernels)


def abstract_batch(shape: RowShape, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `rows` rows."""
    return {name: jax.ShapeDtypeStruct(dims, dtype) for name, (dims, dtype) in batch_spec(shape, rows).items()}


def init_params(model: Vlm, shape: RowShape, key: jax.Array) -> Any:
    """Fresh parameters, boxed with their logical axis names; trace it (`jax.eval_shape`, `jax.jit`)."""
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in abstract_batch(shape, 1).items()}
    return model.init(key, batch, jax.random.key(0))["params"]


def boxed_state(config: OptimizerConfig, total_steps: int, model: Vlm, shape: RowShape) -> tuple[Any, Optimizer]:
    """(abstract TrainState whose leaves carry axis names, its optimizer)."""
    params = jax.eval_shape(lambda key: init_params(model, shape, key), jax.random.key(0))
    optimizer = make_optimizer(config, total_steps, nn.unbox(params))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(count, count, count, params, jax.eval_shape(optimizer.init, params)), optimizer


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """What is known of a run before its first number exists.

    shape       of a row; parameters are the same for every bucket's
    boxed       abstract state whose leaves carry axis names
    min_size    smaller leaves are not split, see `sharding.shardings_of`
    """

    model: Vlm
    shape: RowShape
    optimizer: Optimizer
    boxed: TrainState
    mesh: jax.sharding.Mesh
    min_size: int = MIN_SIZE

    @property
    def platform(self) -> str:
        """Of the devices."""
        return self.mesh.devices.flat[0].platform

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings: what a checkpoint is loaded onto."""
        return abstract_state(self.boxed, self.mesh, self.min_size)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Where every leaf lies."""
        return shardings_of(self.boxed, self.mesh, self.min_size)


def blueprint(config: RunConfig, mesh: jax.sharding.Mesh, min_size: int = MIN_SIZE) -> Blueprint:
    """The plan of a run on a mesh; no array is made."""
    shape = config.data.row_shape
    model = build_model(config.model, config.pruning, shape, mesh.devices.flat[0].platform)
    boxed, optimizer = boxed_state(config.optimizer, config.total_steps, model, shape)
    return Blueprint(model, shape, optimizer, boxed, mesh, min_size)


def fresh_state(plan: Blueprint, seed: int) -> TrainState:
    """Initialised on the mesh, each shard where it belongs."""

    def make(key: jax.Array) -> TrainState:
        params = nn.unbox(init_params(plan.model, plan.shape, key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, zero, params, plan.optimizer.init(params))

    return jax.jit(make, out_shardings=plan.shardings)(jax.random.key(seed))
