"""What a benchmark is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# (what the model said, meta of the question) -> right, wrong, or None where nothing can be read from the answer, which
# counts as wrong. meta has id, family, question, answer, target, options, style. Pure: no randomness, no state.
Scorer = Callable[[str, Mapping[str, Any]], bool | None]


@dataclass(frozen=True)
class Task:
    """name            as the user types it
    source, split   where the questions come from, a name of `data.sources.registry`
    max_new_tokens  the longest answer
    chance          accuracy of guessing, where it is known
    """

    name: str
    source: str
    split: str
    max_new_tokens: int
    score: Scorer
    chance: float | None = None
