"""The input pipeline: records -> frames and tokens -> packed rows -> batches, resumable to the row.

    batches = train_batches(config, tokenizer)
    batch = next(batches)             # dict of numpy arrays, see schema.BATCH
    state = batches.get_state()       # a small JSON-able dict
    batches.set_state(state)          # goes on with exactly the batch that would have come next

Order: shuffled sources -> mixture -> this process's share -> decode and build (threads) -> pack -> batch -> prefetch.
The order of the batches depends on the seed, the config and the number of shares alone, not on the threads.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from sttts_jax.data.config import DataConfig
from sttts_jax.data.mixture import mix
from sttts_jax.data.packing import batch_packed, fill_rate, pack
from sttts_jax.data.place import check_same_data, identity
from sttts_jax.data.reader import Reader
from sttts_jax.data.sources.registry import open_source
from sttts_jax.data.tokenizer import Tokenizer

STATE_KEY = "iterator"


class Batches(Iterator[dict[str, np.ndarray]]):
    """Endless batches of `rows // shard_count` rows for one process."""

    def __init__(self, dataset: grain.IterDataset, config: DataConfig, reader: Reader, identity: dict[str, Any]):
        self._held = [iter(dataset)]
        weakref.finalize(self, _release, self._held)
        self._shape = config.row_shape
        self._identity = identity
        self._filled: dict[str, float] = {}
        self.count = 0  # batches made so far
        self.names: tuple[str, ...] = ()  # of the records in the newest batch
        self.reader = reader

    def __next__(self) -> dict[str, np.ndarray]:
        batch, self.names = next(self._held[0])
        self.count += 1
        for name, share in fill_rate(batch, self._shape).items():
            self._filled[name] = self._filled.get(name, 0.0) + share
        return batch

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs: plain numbers, lists and dicts."""
        return {**self._identity, STATE_KEY: self._held[0].get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a state of another number of shares or another mixture: it would not continue the
        same stream.
        """
        check_same_data(state["sources"], self._identity["sources"])
        for key, mine in self._identity.items():
            if key != "sources" and state.get(key) != mine:
                raise ValueError(
                    f"the saved data position has {key}={state.get(key)!r} and this run {mine!r}; "
                    "run with the saved one, or start the data anew in another workdir"
                )
        self._held[0].set_state(state[STATE_KEY])

    def stats(self) -> dict[str, float]:
        """Since the start of this object: mean fill of frames, cells and tokens, records seen and bad, and their
        share.
        """
        bad = self.reader.bad
        filled = {f"fill_{name}": total / self.count for name, total in self._filled.items()}
        return {**filled, "records": bad.seen, "bad_records": bad.bad, "bad_share": bad.bad / max(bad.seen, 1)}


def _release(held: list[grain.DatasetIterator]) -> None:
    """Stops the threads. Runs before the interpreter goes, when Grain could no longer do it by itself."""
    held.pop().close()


def train_batches(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    shard_index: int = 0,
    shard_count: int = 1,
    part: int = 0,
    parts: int = 1,
) -> Batches:
    """Batches of this process's rows: share `shard_index` of `shard_count` equal shares of `config.rows`.

    Shares draw different records: every shard_count-th of the mixture. So do the `parts` streams of a run that has
    several. Raises ValueError for settings that cannot work.
    """
    config.check()
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index={shard_index} must be from 0 to below shard_count={shard_count}")
    if not 0 <= part < parts:
        raise ValueError(f"part={part} must be from 0 to below parts={parts}")
    if config.rows % shard_count:
        raise ValueError(
            f"data.rows={config.rows} cannot be divided among {shard_count} loading processes; give a multiple of it"
        )
    sources = [open_source(source) for source in config.sources]
    shape = config.row_shape
    reader = Reader(config, sources, tokenizer)
    lengths = [len(source) for source in sources]
    draws = mix(lengths, config.sources, config.seed)[shard_index * parts + part :: shard_count * parts]
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(4 * config.threads, 8))
    items = draws.map(reader).to_iter_dataset(options)
    rows = pack(items, shape, config.packing_rows, config.seed)
    batches = rows.batch(config.rows // shard_count, drop_remainder=True, batch_fn=batch_packed)
    own = {
        "shard_index": shard_index,
        "shard_count": shard_count,
        "seed": config.seed,
        **({"part": part, "parts": parts} if parts > 1 else {}),
        "sources": [
            identity(source, len(records), records.fingerprint)
            for source, records in zip(config.sources, sources, strict=True)
        ],
    }
    return Batches(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch), config, reader, own)
