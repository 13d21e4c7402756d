"""Arguments that several commands share, and what is wrong with them in one sentence."""

import argparse

PRUNED_FRACTION = "share of the video's cells to remove, from 0 up to but not 1 (default: as trained)"


def words(text: str, flag: str) -> list[str]:
    """'a, b' -> ['a', 'b'], each once. Raises ValueError where there is none."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise ValueError(f"{flag} is empty; give one or more, separated by commas")
    return list(dict.fromkeys(found))


def whole_numbers(text: str, flag: str) -> list[int]:
    """'8,16' -> [8, 16]. Raises ValueError unless all are at least 1."""
    found = words(text, flag)
    for word in found:
        if not word.isdigit() or not int(word):
            raise ValueError(f"{flag} {word} must be a whole number from 1 up")
    return [int(word) for word in found]


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for a number below 1 among the given ones."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
