"""Arguments that several commands share: how they are declared, read, and refused in one sentence."""

import argparse
import dataclasses
from collections.abc import Sequence

from sttts_jax.processes.config import DistributedConfig


def add_pruned_fraction(parser: argparse.ArgumentParser, default: str | None = None, several: bool = False) -> None:
    """The removed share, by its one name, `--k` for short; `default` None: as trained."""
    parser.add_argument(
        "--pruned_fraction",
        "--k",
        default=default,
        metavar="K[,K]" if several else "K",
        help=f"share of a video's cells to remove, 0 <= K < 1 (default: {default or 'as trained'})",
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """The method of pruning, where it may be another than that of the training."""
    parser.add_argument(
        "--method",
        metavar="NAME",
        help="of pruning: random, easy or reference_tracking for any checkpoint, without training; scorer, soft_only "
        "where there is one; none (default: as trained)",
    )


def add_sampling(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """The rule by which frames are chosen; `default` None: as trained."""
    parser.add_argument(
        "--sampling",
        default=default,
        metavar="RULE",
        help=f"of frames: molmo2, the last one included, or transformers, as its processor does "
        f"(default: {default or 'as trained'})",
    )


def add_distributed(parser: argparse.ArgumentParser) -> None:
    """How several processes find each other: the keys of a config's section of that name."""
    group = parser.add_argument_group(
        "several processes",
        "As the section `distributed` of a run's config (docs/config.md). Launchers and clusters are found by "
        "themselves; by hand it is these, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    for field in dataclasses.fields(DistributedConfig):
        kind = type(field.default)
        group.add_argument(
            f"--distributed.{field.name}", type=kind, default=field.default, metavar=kind.__name__.upper()[:1]
        )


def distributed_config(args: argparse.Namespace) -> DistributedConfig:
    """What `add_distributed` asked. Raises ValueError for what contradicts itself."""
    names = [field.name for field in dataclasses.fields(DistributedConfig)]
    return DistributedConfig(**{name: getattr(args, f"distributed.{name}") for name in names}).check()


def words(text: str, flag: str, known: Sequence[str] = ()) -> list[str]:
    """The different words of a list with commas. Raises ValueError if there is none, or one that is not `known`."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise ValueError(f"{flag} is empty; give one or more, separated by commas")
    wrong = [word for word in found if known and word not in known]
    if wrong:
        raise ValueError(f"{flag} {wrong[0]} is unknown; choose from {', '.join(known)}")
    return found


def whole_numbers(text: str, flag: str) -> list[int]:
    """'8,16' -> [8, 16]. Raises ValueError unless all are at least 1."""
    found = words(text, flag)
    for word in found:
        if not word.isdigit() or not int(word):
            raise ValueError(f"{flag} {word} must be a whole number from 1 up")
    return [int(word) for word in found]


def mesh_axes(text: str) -> dict[str, int]:
    """'fsdp=-1,tensor=2' -> {"fsdp": -1, "tensor": 2}. Raises ValueError for what is no axis and its size."""
    found = dict(word.partition("=")[::2] for word in words(text, "--mesh"))
    for axis, size in found.items():
        if not size.removeprefix("-").isdigit():
            raise ValueError(f"--mesh {axis}={size} must be AXIS=N with a whole number; -1: the rest of the devices")
    return {axis: int(size) for axis, size in found.items()}


def check_not_empty(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for an empty text under one of these names, as an unset variable of a shell leaves."""
    for name in names:
        if getattr(args, name) == "":
            raise ValueError(f"--{name} is empty; give a value, or leave it out")


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for a number below 1 under one of these names; None is left alone."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
