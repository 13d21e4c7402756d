"""The config of a run: frozen sections, built strictly from an ml_collections ConfigDict.

A config file starts from `defaults()` and changes what it needs, so every key exists and can be overridden on the
command line; `RunConfig.build` refuses keys that no section has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from sttts_jax.ckpt.manager import CheckpointConfig
from sttts_jax.data.config import DataConfig
from sttts_jax.distributed import DistributedConfig
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.lora import LoraConfig
from sttts_jax.models.presets import check_keys, preset, with_overrides
from sttts_jax.ops.attention.kernels import KERNELS
from sttts_jax.ops.remat import remat_policy
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.train.optimizer import VLM_LABELS, GroupConfig, OptimizerConfig, without_group
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
    remat           a name of `ops.remat`
    attention       a name of `ops.attention.kernels`; "auto": those of the platform that the run is compiled for
    lora_rank, lora_alpha, lora_targets    see `models.lora`; rank 0 is none, and targets are regexes on leaf names
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

    def check(self) -> "ModelConfig":
        """Raises ValueError with one sentence; returns self."""
        _ = self.vlm
        remat_policy(self.remat)
        if self.attention not in KERNELS:
            raise ValueError(f"model.attention={self.attention!r} is unknown; choose one of {', '.join(KERNELS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        return self


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Learning rates of the four groups, and what they share.

    frozen          regexes on whole names of parameters that are not trained
    train_only      if given, what none of these regexes matches is not trained either: ("vit/scorer/.*",) for the
                    scorer alone, (".*_lora_[ab]", "vit/scorer/.*") for it and LoRA
    """

    llm_lr: float = 1e-5
    vit_lr: float = 5e-6
    connector_lr: float = 5e-6
    scorer_lr: float = 1e-4
    warmup: int = 200
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    final_fraction: float = 0.1
    frozen: tuple[str, ...] = ()
    train_only: tuple[str, ...] = ()

    def build(self, total_steps: int, scorer: bool) -> OptimizerConfig:
        """Groups for a model with or without a scorer. Molmo2 trains the added token rows with the connector."""
        rates = {"llm": self.llm_lr, "vit": self.vit_lr, "connector": self.connector_lr, "scorer": self.scorer_lr}
        groups = {n: GroupConfig(lr, self.warmup, self.weight_decay, self.clip_norm) for n, lr in rates.items()}
        config = OptimizerConfig(
            total_steps=total_steps,
            groups=groups,
            labels=VLM_LABELS,
            frozen=tuple(self.frozen),
            train_only=tuple(self.train_only),
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            final_fraction=self.final_fraction,
        )
        return config if scorer else without_group(config, "scorer")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """z_loss: coefficient of logsumexp^2; accumulate: micro-batches of an update; max_skipped: updates in a row that
    may be skipped for a NaN or an infinity before the run ends."""

    z_loss: float = 1e-4
    accumulate: int = 1
    max_skipped: int = 5

    def check(self) -> "LossConfig":
        """Raises ValueError with one sentence; returns self."""
        if self.accumulate < 1 or self.max_skipped < 1 or self.z_loss < 0:
            raise ValueError("loss.accumulate and loss.max_skipped must be at least 1, and loss.z_loss not negative")
        return self


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """every: steps between log lines; histogram_every: steps between scorer histograms."""

    every: int = 10
    histogram_every: int = 100
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """Deadlines in seconds, 0 for none: to the first step, and from step to step."""

    startup_s: float = 0.0
    step_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything about a run.

    tokenizer   a directory with tokenizer.json; "": that of init_from, or without one trained on the run's own text
    init_from   where the parameters of a run's first start come from: a converted checkpoint, another run's workdir,
                or a step of one; "" starts from fresh ones
    """

    seed: int
    total_steps: int
    tokenizer: str
    model: ModelConfig
    pruning: PruneConfig
    data: DataConfig
    optimizer: OptimConfig
    loss: LossConfig
    log: LogConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    watchdog: WatchdogConfig
    profile: ProfileConfig
    distributed: DistributedConfig
    init_from: str = ""

    @property
    def vlm(self) -> VlmConfig:
        """The model's sizes."""
        return self.model.vlm

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
        check_keys("config", tree, [f.name for f in dataclasses.fields(cls)])
        sections = {name: section(name, kind, tree.get(name, {})) for name, kind in SECTIONS.items() if name != "data"}
        for part in sections.values():
            if hasattr(part, "check"):
                part.check()
        scalars = {name: tree.get(name, default) for name, default in SCALARS.items()}
        if scalars["total_steps"] < 1:
            raise ValueError(f"total_steps={scalars['total_steps']} must be at least 1")
        data = _data(tree.get("data", {}), sections["model"], sections["pruning"])
        if data.rows % sections["loss"].accumulate:
            raise ValueError(
                f"data.rows={data.rows} does not divide by loss.accumulate={sections['loss'].accumulate}; "
                "use a multiple"
            )
        run = cls(**scalars, **sections, data=data)
        run.optimizer.build(run.total_steps, run.pruning.scores).check()
        run._check_buckets()
        return run

    def _check_buckets(self) -> None:
        for fraction in self.pruning.fractions:
            try:
                self._bucket(fraction).data.check()
            except ValueError as error:
                raise ValueError(f"pruning.fractions, rows at {fraction}: {error}") from None


# Keys outside of the sections. What a config that another version wrote lacks has its default.
SCALARS = {"seed": 0, "total_steps": 1000, "tokenizer": "", "init_from": ""}
SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "pruning": PruneConfig,
    "data": DataConfig,
    "optimizer": OptimConfig,
    "loss": LossConfig,
    "log": LogConfig,
    "mesh": MeshConfig,
    "checkpoint": CheckpointConfig,
    "watchdog": WatchdogConfig,
    "profile": ProfileConfig,
    "distributed": DistributedConfig,
}


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
    return kind(**values)


def _data(values: Mapping[str, Any], model: ModelConfig, pruning: PruneConfig) -> DataConfig:
    vit = model.vlm.vit
    taken = sorted(set(values) & set(DERIVED_DATA))
    if taken:
        raise ValueError(f"data.{taken[0]} follows from model.preset and pruning.fraction; remove it from the config")
    derived = {"image_size": vit.image_size, "grid": vit.grid, "cells": vit.cells, "fraction": pruning.drops}
    return section("data", DataConfig, {**values, **derived}).check()


def parse_arg(arg: str, **spec: Any) -> Any:
    """The argument of `--config FILE.py:a=1,b=x` as a namespace, typed as the defaults in `spec`; unknown names refuse.

    >>> parse_arg("steps=5", steps=100, method="scorer").steps
    5
    """
    values = dict(spec)
    for part in filter(None, arg.split(",")):
        name, equal, text = part.partition("=")
        check_keys("the config argument", {name: None}, list(spec))
        if not equal:
            raise ValueError(f"config argument {part!r} has no value; write {name}=VALUE")
        kind = type(spec[name])
        try:
            values[name] = text.lower() in ("1", "true") if kind is bool else kind(text)
        except ValueError:
            raise ValueError(f"config argument {name}={text!r} must be a {kind.__name__}") from None
    return ml_collections.FrozenConfigDict(values)
