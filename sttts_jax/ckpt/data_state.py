"""The data position of a run as an Orbax checkpointable: one small JSON file a process."""

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
            self._iterator.set_state(json.loads((directory / _file()).read_text()))

        return read()


def _file() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"
