"""The data position in a checkpoint: any number of processes reads what any other number wrote."""

import asyncio
import json
from pathlib import Path
from typing import Any

from etils import epath

from sttts_jax.ckpt.data_state import DataState, merged


class _Position:
    """Of nothing."""

    state: Any = None

    def get_state(self) -> dict[str, Any]:
        return self.state

    def set_state(self, state: dict[str, Any]) -> None:
        self.state = state


def test_what_both_have_is_there_once() -> None:
    one, two = {"seed": 1, "rows": {"0": {"next": 4}}}, {"seed": 1, "rows": {"1": {"next": 5}}}
    assert merged(one, two) == {"seed": 1, "rows": {"0": {"next": 4}, "1": {"next": 5}}}


def test_whoever_loads_reads_the_positions_of_all(tmp_path: Path) -> None:
    """Each process saved those of its own rows, some of them the same."""
    for number, rows in enumerate(({"0": 4, "2": 5}, {"1": 6, "2": 5})):
        (tmp_path / f"process_{number}-of-2.json").write_text(json.dumps({"rows": rows}))
    position = _Position()

    async def load() -> None:
        await (await DataState(position).load(epath.Path(tmp_path)))

    asyncio.run(load())
    assert position.state == {"rows": {"0": 4, "1": 6, "2": 5}}
