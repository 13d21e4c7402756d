"""The config of a run: frozen sections, built strictly from an ml_collections ConfigDict.

A config file starts from `defaults()` and changes what it needs, so every key exists and can be overridden on the
command line; `RunConfig.build` refuses keys that no section has.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
import ml_collections

from sttts_jax.ckpt.manager import CheckpointConfig
from sttts_jax.data.config import DataConfig
from sttts_jax.mesh import axis_sizes
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.lora import LoraConfig
from sttts_jax.models.overrides import check_keys, with_overrides
from sttts_jax.models.presets import preset
from sttts_jax.ops.attention.kernels import KERNELS
from sttts_jax.ops.remat import remat_policy
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.pruning.budget import MOST_FRAMES, as_fraction
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.train.kinds import check_kinds, check_mapping, check_seed
from sttts_jax.train.optimizer import OptimizerConfig
from sttts_jax.train.profile import ProfileConfig

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Every projection of the language model and of the ViT.
LORA_TARGETS = (r"llm/blocks/(q|kv|out|gate_up|down)", r"vit/blocks_.*/(qkv|out|fc1|fc2)")
# Sizes that follow from the model and the pruning: not settings of their own.
DERIVED_DATA = ("image_size", "grid", "cells", "fraction")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What to build and how it computes.

    preset          a name of `models.presets`
    overrides       other sizes than the preset's: {"vit": {...}, "connector": {...}, "llm": {...}}
    dtype           of the compute (weights are float32)
    remat           a name of `ops.remat`: what the backward pass computes again
    attention       a name of `ops.attention.kernels`; "auto": those of the platform that the run is compiled for
    lora_rank       of the factors that LoRA adds, see `models.lora`; 0 is none
    lora_alpha      their product is scaled by lora_alpha / lora_rank
    lora_targets    regexes on whole names of the projections that get them
    """

    preset: str = "tiny"
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = LORA_TARGETS

    @property
    def vlm(self) -> VlmConfig:
        """The sizes of the preset with the overrides, and LoRA."""
        cfg = with_overrides(preset(self.preset), self.overrides)
        if not self.lora_rank:
            return cfg
        lora = LoraConfig(self.lora_rank, float(self.lora_alpha), tuple(self.lora_targets))
        return dataclasses.replace(cfg, lora=lora).check()

    def check(self) -> Self:
        """Raises ValueError with one sentence; returns self."""
        check_mapping("model.overrides", self.overrides)
        if not self.lora_alpha > 0:
            raise ValueError(f"model.lora_alpha={self.lora_alpha} must be positive")
        _ = self.vlm
        remat_policy(self.remat)
        if self.attention not in KERNELS:
            raise ValueError(f"model.attention={self.attention!r} is unknown; choose one of {', '.join(KERNELS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        return self


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, and what an update is.

    z_loss          coefficient of logsumexp^2
    accumulate      micro-batches of an update, which divide data.rows
    max_skipped     updates in a row that may be skipped for a NaN or an infinity before the run ends
    """

    z_loss: float = 1e-4
    accumulate: int = 1
    max_skipped: int = 5

    def check(self) -> Self:
        """Itself. Raises ValueError with one sentence."""
        if self.accumulate < 1 or self.max_skipped < 1 or self.z_loss < 0:
            raise ValueError("loss.accumulate and loss.max_skipped must be at least 1, and loss.z_loss not negative")
        return self


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Questions that the model is asked during training; accuracies go to the curves, and to checkpoint.best_metric.

    every            steps from one to the next; the last step is evaluated too; 0 is never
    tasks            names as `sttts-jax evaluate` takes them, such as ("shapes_video_qa:validation",)
    limit            first questions of each task, 0 for all
    batch            videos a batch, over all devices, or a few more that divide over the mesh
    fraction         share of the cells to remove, a decimal; "": pruning.fraction
    max_frames       of a video, 0 for data.max_frames
    """

    every: int = 0
    tasks: tuple[str, ...] = ()
    limit: int = 0
    batch: int = 32
    fraction: str = ""
    max_frames: int = 0

    @property
    def accuracies(self) -> dict[str, str]:
        """{task: name of its accuracy among the metrics}."""
        return {task: f"eval/{task}/accuracy" for task in self.tasks}

    def check(self) -> Self:
        """Itself. Raises ValueError with one sentence."""
        for name, least in (("every", 0), ("limit", 0), ("batch", 1), ("max_frames", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name}={getattr(self, name)} must be at least {least}")
        if self.max_frames > MOST_FRAMES:
            raise ValueError(f"evaluation.max_frames={self.max_frames} must be at most {MOST_FRAMES:,}")
        if self.every and not self.tasks:
            raise ValueError(f"evaluation.every={self.every} asks for evaluation.tasks; name some, or set it to 0")
        if self.fraction:
            as_fraction(self.fraction, "evaluation.fraction")
        return self


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written how often.

    every            steps between lines of the console and of metrics.jsonl
    histogram_every  steps between histograms of the scores
    tensorboard      event files beside metrics.jsonl
    """

    every: int = 10
    histogram_every: int = 100
    tensorboard: bool = True

    def check(self) -> Self:
        """Itself. Raises ValueError with one sentence."""
        if self.every < 1 or self.histogram_every < 1:
            raise ValueError("log.every and log.histogram_every must be at least 1")
        return self


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """Deadlines in seconds, after which a run that hangs ends itself with the stacks of its threads; 0 for none, -1 for
    none in a run of one process, and in one of several 3600 to the first step, 900 for the others, 1800 for a save.

    startup_s       to the first step, which is compiled
    step_s          from step to step
    save_s          for a save, and for the end of the one before it
    """

    startup_s: float = -1.0
    step_s: float = -1.0
    save_s: float = -1.0

    def check(self) -> Self:
        """Itself. Raises ValueError with one sentence."""
        for name, value in dataclasses.asdict(self).items():
            if value < 0 and value != -1:
                raise ValueError(f"watchdog.{name}={value} must not be negative; use 0 for none, -1 for the usual one")
        return self

    def of(self, processes: int) -> Self:
        """The deadlines of a run of so many processes, none of them -1."""
        usual = {"startup_s": 3600.0, "step_s": 900.0, "save_s": 1800.0} if processes > 1 else {}
        given = dataclasses.asdict(self).items()
        return dataclasses.replace(self, **{k: usual.get(k, 0.0) if value == -1 else value for k, value in given})


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; those at -1 share the devices that are left: data and fsdp take as many as the rows of a
    micro-batch divide over (data one a slice, if both are -1), and tensor or sequence the rest.

    data            rows of the batch
    fsdp            rows of the batch, and parameters
    tensor          heads, MLP and vocabulary
    sequence        frames and tokens of a row, heads where these meet, and parameters
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def check(self) -> Self:
        """Itself. Raises ValueError for sizes that fit no number of devices."""
        sizes = dataclasses.asdict(self)
        axis_sizes(sizes, math.prod(size for size in sizes.values() if size != -1))
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run: keys of its own, and sections.

    seed            of parameters, dropout and everything else that is random on the device; data.seed: of the data
    total_steps     updates; the learning rates end there
    tokenizer       a directory with tokenizer.json; "": that of init_from, or without one trained on the run's own text
    init_from       where the parameters of a run's first start come from: a converted checkpoint, another run's
                    workdir, or a step of one; "" starts from fresh ones
    compile_cache   where compiled programs are kept for the next start: "auto" is the user's cache directory, and
                    nowhere if there are several processes; "off"; or a directory
    """

    seed: int = 0
    total_steps: int = 1000
    tokenizer: str = ""
    init_from: str = ""
    compile_cache: str = "auto"
    model: ModelConfig
    pruning: PruneConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    evaluation: EvaluationConfig
    log: LogConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    watchdog: WatchdogConfig
    profile: ProfileConfig
    distributed: DistributedConfig

    @property
    def vlm(self) -> VlmConfig:
        """The model's sizes."""
        return self.model.vlm

    @property
    def micro_rows(self) -> int:
        """Rows that the devices hold at a time."""
        return self.data.rows // self.loss.accumulate

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Raises ValueError where the model or its rows do not divide over the axes `tensor` and `sequence`, by name:
        devices would repeat the work of others.
        """
        sequence = sizes["sequence"]
        self.vlm.check_shared(sizes["tensor"] * sequence)
        if self.data.frames_per_row % sequence:
            raise ValueError(
                f"data.frames_per_row={self.data.frames_per_row} does not divide over mesh.sequence={sequence}; use a "
                f"multiple of {sequence}"
            )
        if sequence > 1 and self.pruning.packing == "bins":
            raise ValueError(
                f"pruning.packing='bins' packs frames of all rows and cannot share rows out over mesh.sequence="
                f"{sequence}; use 'staircase', or mesh.sequence=1"
            )

    @property
    def buckets(self) -> tuple["RunConfig", ...]:
        """A config for every one of `pruning.fractions`, itself without any.

        data.row_length is that of pruning.fraction; rows of another share have as much room beside the cells they keep.
        """
        return tuple(self._bucket(k) for k in self.pruning.fractions) or (self,)

    def _bucket(self, fraction: str) -> "RunConfig":
        kept = dataclasses.replace(self.data, fraction=fraction).row_shape.kept
        length = self.data.row_length + kept - self.data.row_shape.kept
        data = dataclasses.replace(self.data, fraction=fraction, row_length=length)
        pruning = dataclasses.replace(self.pruning, fraction=fraction, fractions=())
        return dataclasses.replace(self, data=data, pruning=pruning)

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> "RunConfig":
        """Raises ValueError that names the key, before any device is touched."""
        tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
        for name in SECTIONS:
            check_mapping(name, tree.get(name, {}))
        check_keys("config", tree, [f.name for f in dataclasses.fields(cls)])
        kinds = {name: kind for name, kind in SECTIONS.items() if name != "data"}
        sections = {name: section(name, kind, tree.get(name, {})).check() for name, kind in kinds.items()}
        sections["data"] = _data(tree.get("data", {}), sections["model"], sections["pruning"])
        return cls(**sections, **{name: tree[name] for name in SCALARS if name in tree}).check()

    def check(self) -> Self:
        """Itself, whose sections are right, each by itself. Raises ValueError where they do not go together."""
        check_kinds("", self)
        check_seed(self.seed)
        self.optimizer.check_steps(self.total_steps)
        rows, parts = self.data.rows, self.loss.accumulate
        if rows % parts:
            raise ValueError(f"data.rows={rows} does not divide by loss.accumulate={parts}; use a multiple")
        self._check_buckets()
        self._check_best_metric()
        self.check_mesh({name: max(size, 1) for name, size in dataclasses.asdict(self.mesh).items()})
        return self

    def _check_buckets(self) -> None:
        for fraction in self.pruning.fractions:
            try:
                self._bucket(fraction).data.check()
            except ValueError as error:
                raise ValueError(f"pruning.fractions, rows at {fraction}: {error}") from None

    def _check_best_metric(self) -> None:
        name, every = self.checkpoint.best_metric, self.evaluation.every
        if not name:
            return
        known = list(self.evaluation.accuracies.values()) if every else []
        if name not in known:
            raise ValueError(
                f"checkpoint.best_metric={name!r} is not measured; "
                + (f"choose one of {', '.join(known)}" if known else "set evaluation.every and evaluation.tasks")
            )
        if self.checkpoint.every % every:
            raise ValueError(
                f"checkpoint.best_metric compares saved steps, so checkpoint.every={self.checkpoint.every} must be a "
                f"multiple of evaluation.every={every}"
            )


SECTIONS = {
    f.name: f.type
    for f in dataclasses.fields(RunConfig)
    if isinstance(f.type, type) and dataclasses.is_dataclass(f.type)
}
# Keys outside of the sections, with their defaults, which a config that another version wrote may lack.
SCALARS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.name not in SECTIONS}


def defaults() -> ml_collections.ConfigDict:
    """All keys with their defaults: what a config file starts from."""
    config = ml_collections.ConfigDict(SCALARS)
    for name, kind in SECTIONS.items():
        fields = [f for f in dataclasses.fields(kind) if name != "data" or f.name not in (*DERIVED_DATA, "sources")]
        config[name] = ml_collections.ConfigDict({f.name: _default(f) for f in fields})
    config.data.sources = (("shapes_video_qa", 1.0, "train"),)
    return config


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def section(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    """A frozen section from its part of the config; an unknown key is named, with the nearest known one."""
    check_keys(name, values, [f.name for f in dataclasses.fields(kind)])
    made = kind(**values)
    check_kinds(f"{name}.", made)
    return made


def _data(values: Mapping[str, Any], model: ModelConfig, pruning: PruneConfig) -> DataConfig:
    vit = model.vlm.vit
    taken = sorted(set(values) & set(DERIVED_DATA))
    if taken:
        raise ValueError(f"data.{taken[0]} follows from model.preset and pruning.fraction; remove it from the config")
    derived = {"image_size": vit.image_size, "grid": vit.grid, "cells": vit.cells, "fraction": pruning.removed}
    return section("data", DataConfig, {**values, **derived}).check()
