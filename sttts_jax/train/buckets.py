"""The buckets of a run: one for every share that its steps may remove.

All buckets train the same parameters. Each has its own static shapes, and so its own stream of rows and its own
compiled step. Which one a step takes follows from the seed and the step's number alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sttts_jax.data.config import DataConfig
from sttts_jax.data.pipeline import Batches, train_batches
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.mesh import DataLayout
from sttts_jax.train.config import RunConfig
from sttts_jax.train.cost import frozen_parts, update_flops
from sttts_jax.train.state import Blueprint, build_model
from sttts_jax.train.step import train_step


def draw(seed: int, step: int, count: int) -> int:
    """Which of `count` buckets step `step` takes: the same number in every process, and again after a resume."""
    word = np.random.SeedSequence([seed % 2**64, step]).generate_state(1, np.uint64)[0]
    return int(word) * count >> 64


@dataclasses.dataclass
class Bucket:
    """config: the run's with this bucket's share and row length. flops: of an update. compiled: its step, if it is."""

    config: RunConfig
    batches: Batches
    step: jax.stages.Wrapped
    flops: float
    compiled: Callable[..., Any] | None = None

    @property
    def fraction(self) -> str:
        """The share of cells that is removed."""
        return self.config.pruning.removed


class Buckets:
    """`at(number)` is the bucket of a step. As a whole, it is the run's data position: one state of every stream."""

    def __init__(self, buckets: Sequence[Bucket], seed: int):
        self.all = list(buckets)
        self._seed = seed

    def at(self, number: int) -> Bucket:
        """The bucket of update `number`, which starts at 1."""
        return self.all[draw(self._seed, number, len(self.all))]

    def get_state(self) -> dict[str, Any]:
        """Plain JSON. A run of one bucket has the state of its stream."""
        if len(self.all) == 1:
            return self.all[0].batches.get_state()
        return {"streams": {bucket.fraction: bucket.batches.get_state() for bucket in self.all}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for the state of a run with other buckets."""
        if len(self.all) == 1:
            return self.all[0].batches.set_state(dict(state))
        streams, mine = state.get("streams", {}), [bucket.fraction for bucket in self.all]
        if sorted(streams) != sorted(mine):
            raise ValueError(
                f"the saved data position is of the shares {sorted(streams)} and this run's are {sorted(mine)}; "
                "run with the saved pruning.fractions"
            )
        for bucket in self.all:
            bucket.batches.set_state(streams[bucket.fraction])

    def stats(self) -> dict[str, float]:
        """`Batches.stats` over all streams: records are added up, fill rates are means over all batches."""
        parts = [(bucket.batches.count, bucket.batches.stats()) for bucket in self.all]
        counts = {name: sum(stats[name] for _, stats in parts) for name in ("records", "bad_records")}
        filled = {name for _, stats in parts for name in stats if name.startswith("fill_")}
        made = max(sum(count for count, _ in parts), 1)
        fills = {name: sum(count * stats.get(name, 0.0) for count, stats in parts) / made for name in sorted(filled)}
        return {**fills, **counts, "bad_share": counts["bad_records"] / max(counts["records"], 1)}


def open_streams(parts: Sequence[DataConfig], tokenizer: Tokenizer, layout: DataLayout) -> list[Batches]:
    """One stream of batches a bucket; they share the mixture out among themselves, so that none repeats another."""
    return [
        train_batches(part, tokenizer, rows=layout.rows(part.rows), part=number, parts=len(parts))
        for number, part in enumerate(parts)
    ]


def make_buckets(parts: Sequence[RunConfig], plan: Blueprint, streams: Sequence[Batches]) -> Buckets:
    """A bucket for every one of `RunConfig.buckets`. Their steps are compiled when they are first needed."""
    buckets = [_bucket(part, plan, batches) for part, batches in zip(parts, streams, strict=True)]
    return Buckets(buckets, parts[0].seed)


def _bucket(config: RunConfig, plan: Blueprint, batches: Batches) -> Bucket:
    flops = update_flops(config, frozen_parts(plan.optimizer.labels))
    return Bucket(config, batches, bucket_step(config, plan), flops)


def bucket_step(config: RunConfig, plan: Blueprint) -> jax.stages.Wrapped:
    """(TrainState, batch) -> (TrainState, metrics) of one of `RunConfig.buckets`, yet to compile. Donates the state."""
    model = build_model(config.model, config.pruning, config.data.row_shape, plan.platform)
    return jax.jit(
        functools.partial(train_step, config.loss, config.seed, model, plan.optimizer),
        donate_argnums=0,
        out_shardings=(plan.shardings, None),
    )
