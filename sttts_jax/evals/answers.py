"""Rules that several benchmarks share: from the text of an answer to right, wrong or unreadable. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from sttts_jax.data.styles import shows_options

# "B", "b.", "(B)", "B) text", "B: text"; not "A ball", which may well be an option's text.
_LETTER = re.compile(r"\s*\(?([A-Za-z])(?:\s*$|[.):])")


def normalised(text: str) -> str:
    """Lower case, white space collapsed, no quotes or punctuation at the ends."""
    return " ".join(text.lower().split()).strip(" .,!?;:'\"")


def read_option(prediction: str, options: Sequence[str]) -> int | None:
    """Index of the option that is meant. A leading letter decides, whatever follows it; without one the text has to
    equal an option. None if neither gives one.
    """
    match = _LETTER.match(prediction)
    if match:
        index = ascii_uppercase.index(match[1].upper())
        if index < len(options):
            return index
    texts = [normalised(option) for option in options]
    text = normalised(prediction)
    return texts.index(text) if text in texts else None


def judge_multiple_choice(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """Right if the option that is meant is the answer."""
    index = read_option(prediction, meta["options"])
    return None if index is None else normalised(meta["options"][index]) == normalised(meta["answer"])


def judge_short_answer(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """Right if the texts are equal after `normalised`. Where the possible answers are known, another text is None."""
    text, known = normalised(prediction), [normalised(option) for option in meta["options"]]
    if not text or (known and text not in known):
        return None
    return text == normalised(meta["answer"])


def judge_by_style(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """The rule that belongs to how the question was asked: multiple choice with options, else a short answer."""
    choice = shows_options(meta["style"]) and meta["options"]
    return (judge_multiple_choice if choice else judge_short_answer)(prediction, meta)
