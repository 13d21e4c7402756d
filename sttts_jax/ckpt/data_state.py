"""The data position of a run as an Orbax checkpointable: one small JSON file a process, of its own rows.

Whoever loads it reads the files of all, so that any number of processes can go on.
"""

import functools
import json
from collections.abc import Awaitable
from typing import Any, Protocol

import jax
from etils import epath


class Resumable(Protocol):
    """An iterator whose position is plain JSON."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class DataState:
    """Hands an iterator's position to Orbax: the one given, or the one where a save begins; so the loop may go on."""

    def __init__(self, iterator: Resumable, position: dict[str, Any] | None = None):
        self._iterator, self._position = iterator, position

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax awaits the returned coroutine in the background."""
        text = json.dumps(self._iterator.get_state() if self._position is None else self._position)

        async def write() -> None:
            path = await directory.await_creation()
            (path / _file()).write_text(text)

        return write()

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """Sets the iterator to the saved position."""

        async def read() -> None:
            files = sorted(directory.glob("*.json"))
            self._iterator.set_state(functools.reduce(merged, [json.loads(file.read_text()) for file in files]))

        return read()


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """The keys of both; what both have is the same, or is merged likewise."""
    both = {key: merged(one[key], two[key]) for key in one.keys() & two.keys() if isinstance(one[key], dict)}
    return one | two | both


def _file() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"
