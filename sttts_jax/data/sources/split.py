"""Parts of files that have no splits of their own, as TFDS writes them: "train", "train[:90%]", "train[100:-50]"."""

SPLIT = "train"  # what a whole file is


def split_indices(split: str, count: int, name: str) -> list[int]:
    """Which of `count` records a part holds, rounded as TFDS rounds. "" is all of them.

    Raises ValueError, one sentence with `name`, for another split, a part that cannot be, and an empty one.
    """
    if split in ("", SPLIT):
        return list(range(count))
    if split.partition("[")[0] != SPLIT:
        raise ValueError(
            f"{name}: has no split {split!r}; a file is one split, 'train': give that, a part as 'train[:90%]', or "
            "another file"
        )
    import tensorflow_datasets as tfds  # two seconds: only where it is needed

    try:
        whole = tfds.core.SplitInfo(SPLIT, [count], 0)
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute({SPLIT: whole})
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(
            f"{name}: the split {split!r} cannot be had of {count} records; write a part of them as 'train[:90%]' or "
            "'train[20:30]'"
        ) from error
    indices = [index for part in parts for index in range(count)[part.from_ : part.to]]
    if not indices:
        raise ValueError(f"{name}: the split {split!r} of {count} records is empty; take a larger part")
    return indices
