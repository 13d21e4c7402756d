"""The input pipeline: records -> frames and tokens -> packed rows -> batches, resumable to the row.

    batches = train_batches(config, tokenizer)
    batch = next(batches)             # dict of numpy arrays, see schema.BATCH
    state = batches.get_state()       # a small JSON-able dict
    batches.set_state(state)          # goes on with exactly the batch that would have come next

Order: shuffled sources -> mixture -> dealt to the rows of the batch -> decode and build (threads) -> pack -> prefetch.
The order of the batches depends on the seed and the config alone, neither on the threads nor on the processes: each
makes the rows that are its own.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from sttts_jax.data.config import DataConfig
from sttts_jax.data.mixture import mix
from sttts_jax.data.packing import fill_rate
from sttts_jax.data.place import check_same_data, identity
from sttts_jax.data.reader import Reader
from sttts_jax.data.row_streams import RowStreams
from sttts_jax.data.sources.registry import open_source
from sttts_jax.data.tokenizer import Tokenizer

ROWS = "rows"
ORDER = 2  # of draws among rows: another number where it changes


class Batches(Iterator[dict[str, np.ndarray]]):
    """Endless batches of the rows of one process."""

    def __init__(
        self,
        rows: Sequence[int],
        dataset: grain.IterDataset,
        config: DataConfig,
        reader: Reader,
        identity: dict[str, Any],
    ):
        self._rows = rows
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
        """What `set_state` needs: plain numbers, lists and dicts. Those of several processes are merged by key."""
        return {**self._identity, ROWS: self._held[0].get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from the position of its rows, whoever made them before.

        Raises ValueError for a state of another mixture, or of an earlier version: it would not continue the same
        stream.
        """
        if ROWS not in state:
            raise ValueError(
                "the saved data position is of an earlier version, whose order of data depended on the number of "
                "processes; start a new run from its parameters, with init_from"
            )
        check_same_data(state["sources"], self._identity["sources"])
        for key, mine in self._identity.items():
            if key != "sources" and state.get(key) != mine:
                raise ValueError(
                    f"the saved data position has {key}={state.get(key)!r} and this run {mine!r}; "
                    "run with the saved one, or start the data anew in another workdir"
                )
        lacking = [number for number in map(str, self._rows) if number not in state[ROWS]]
        if lacking:
            raise ValueError(
                f"the saved data position lacks row {lacking[0]} of {len(self._rows)}; its files are not those of one "
                "step: go on from another one"
            )
        self._held[0].set_state(state[ROWS])

    def close(self) -> None:
        """Stops the threads; there are no further batches."""
        self._held[0].close()

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
    rows: Sequence[int] | None = None,
    part: int = 0,
    parts: int = 1,
    threads: int | None = None,
) -> Batches:
    """Batches of some rows of the global batch, by number, ascending; None: all `config.rows`.

    A run that has several streams (`parts`) shares the mixture out among them, so that none repeats another. threads:
    None: as the config says; 0: without a thread or a buffer. Raises ValueError for settings that cannot work.
    """
    config.check()
    numbers = range(config.rows) if rows is None else rows
    if not numbers or list(numbers) != sorted(set(numbers)) or not 0 <= min(numbers) <= max(numbers) < config.rows:
        raise ValueError(f"rows={rows} must be different numbers from 0 to below data.rows={config.rows}, ascending")
    if not 0 <= part < parts:
        raise ValueError(f"part={part} must be from 0 to below parts={parts}")
    threads = config.threads if threads is None else threads
    sources = [open_source(source) for source in config.sources]
    reader = Reader(config, sources, tokenizer)
    draws = mix([len(source) for source in sources], config.sources, config.seed)[part::parts].map(reader)
    made = RowStreams(numbers, config.rows, config.row_shape, config.packing_rows, draws.__getitem__, threads)
    own = {
        "order": ORDER,
        "seed": config.seed,
        **({"part": part, "parts": parts} if parts > 1 else {}),
        "sources": [
            identity(source, len(records), records.fingerprint)
            for source, records in zip(config.sources, sources, strict=True)
        ],
    }
    ahead = config.prefetch if threads else 0
    return Batches(numbers, ThreadPrefetchIterDataset(made, prefetch_buffer_size=ahead), config, reader, own)
