"""One endless stream of rows for every row of the global batch, whatever process makes it.

Row r of a batch of R takes draws r, r + R, r + 2 R, .. of the mixture, so the order of the data follows from the config
alone: a process makes the rows that are its own, however many processes there are, and a checkpoint holds the position
of every row. No draw is lost or comes twice when another number of processes goes on. No process waits to know how long
the examples of another one are.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain

from sttts_jax.data.packing import Item, Packed, Waiting, batch_packed, lengths, packed_row, take_row
from sttts_jax.data.schema import RowShape

# The number of a draw -> its example, None where it cannot be used; maybe in another thread.
Read = Callable[[int], "Future[Item | None]"]


class RowStream:
    """The rows of one place in the batch. `choice`: how many examples a row may choose from."""

    def __init__(self, number: int, rows: int, shape: RowShape, choice: int, read: Read):
        self.number = number
        self._rows, self._shape, self._choice, self._read = rows, shape, choice, read
        self._asked: deque[tuple[int, Future[Item | None]]] = deque()  # numbers count the draws of this stream
        self._next = 0  # that nobody has asked for
        self._waiting: list[Waiting] = []  # looked at, and in no row yet
        self._looked = 0  # draws

    def read_ahead(self, ahead: int) -> None:
        """Asks for what the next row may choose from, and for so many examples more."""
        while len(self._waiting) + len(self._asked) < self._choice + ahead:
            self._ask(self._next)
            self._next += 1

    def next_row(self) -> Packed:
        """Waits for what it has to choose from."""
        row = take_row(self._waiting, self._draw, self._shape, self._choice)
        return packed_row([one.item for one in row], self._shape)

    def _ask(self, draw: int) -> None:
        self._asked.append((draw, self._read(self.number + self._rows * draw)))

    def _draw(self) -> Waiting:
        item = None
        while item is None:
            self.read_ahead(1)
            draw, future = self._asked.popleft()
            item = future.result()
            self._looked = max(self._looked, draw + 1)
        return Waiting(draw, item, lengths(item.example, self._shape))

    def get_state(self) -> dict[str, Any]:
        """Plain JSON: {next: the first draw that nobody looked at, waiting: those that were and are in no row yet}."""
        again = [draw for draw, _ in self._asked if draw < self._looked]
        return {"next": self._looked, "waiting": [one.draw for one in self._waiting] + again}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """What waited is read again."""
        self._asked.clear()
        self._waiting = []
        self._next = self._looked = int(state["next"])
        for draw in state["waiting"]:
            self._ask(int(draw))


class RowStreams(grain.IterDataset):
    """Batches of the rows `numbers` of `rows`, as `packing.Packed`.

    read: the example of a draw, by its number. threads: that call it; 0: the caller does, when a row needs it.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        rows: int,
        shape: RowShape,
        choice: int,
        read: Callable[[int], Item | None],
        threads: int,
    ):
        super().__init__()
        self._numbers, self._rows, self._shape, self._choice = numbers, rows, shape, choice
        self._read, self._threads = read, threads

    def __iter__(self) -> "_Iterator":
        pool = ThreadPoolExecutor(self._threads, "decode") if self._threads else None
        ahead = math.ceil(max(4 * self._threads, 8) / len(self._numbers)) if pool else 0

        def read(number: int) -> "Future[Item | None]":
            return _done(self._read(number)) if pool is None else pool.submit(self._read, number)

        streams = [RowStream(number, self._rows, self._shape, self._choice, read) for number in self._numbers]
        return _Iterator(streams, pool, ahead)


class _Iterator(grain.DatasetIterator):
    def __init__(self, streams: Sequence[RowStream], pool: ThreadPoolExecutor | None, ahead: int):
        super().__init__()
        self._streams, self._pool, self._ahead = streams, pool, ahead

    def __next__(self) -> Packed:
        for stream in self._streams if self._pool else ():
            stream.read_ahead(self._ahead)
        return batch_packed([stream.next_row() for stream in self._streams])

    def get_state(self) -> dict[str, Any]:
        return {str(stream.number): stream.get_state() for stream in self._streams}

    def set_state(self, state: dict[str, Any]) -> None:
        for stream in self._streams:
            stream.set_state(state[str(stream.number)])

    def close(self) -> None:
        """What is not read yet is read no more."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _done(item: Item | None) -> "Future[Item | None]":
    future: Future[Item | None] = Future()
    future.set_result(item)
    return future
