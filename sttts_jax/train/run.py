"""What a training loop holds, made ready: mesh, data, model, checkpoints."""

import dataclasses
from typing import Any

import jax

from sttts_jax.ckpt.manager import Manager
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.mesh import DataLayout, make_mesh
from sttts_jax.train.buckets import Buckets, make_buckets, open_streams
from sttts_jax.train.config import RunConfig
from sttts_jax.train.state import Blueprint, blueprint


@dataclasses.dataclass
class Run:
    """Everything a loop holds."""

    config: RunConfig
    workdir: Workdir
    mesh: jax.sharding.Mesh
    layout: DataLayout
    plan: Blueprint
    buckets: Buckets
    manager: Manager
    raw_config: dict[str, Any]


def prepare(config: RunConfig, workdir: Workdir, raw_config: dict[str, Any], tokenizer: Tokenizer) -> Run:
    """Mesh, data, model, checkpoints of a run; the data starts to load before anything compiles."""
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    layout = DataLayout(mesh)
    layout.rows_per_process(config.data.rows // config.loss.accumulate)
    if tokenizer.base_size != config.vlm.llm.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.base_size} base rows and model {config.model.preset} {config.vlm.llm.vocab}"
            "; use the tokenizer that belongs to the model"
        )
    streams = open_streams(config, tokenizer, layout)
    plan = blueprint(config, mesh, config.data.row_shape)
    buckets = make_buckets(config, plan, streams, mesh.devices.flat[0].platform)
    manager = Manager(workdir.checkpoints, config.checkpoint)
    return Run(config, workdir, mesh, layout, plan, buckets, manager, raw_config)
