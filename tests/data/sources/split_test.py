"""Parts of a file, as TFDS cuts them."""

import pytest

from sttts_jax.data.sources.split import split_indices


def test_parts_are_those_of_tfds() -> None:
    assert split_indices("", 3, "x") == split_indices("train", 3, "x") == [0, 1, 2]
    assert split_indices("train[:10%]", 30, "x") == [0, 1, 2]
    assert split_indices("train[90%:]", 30, "x") == [27, 28, 29]
    assert split_indices("train[2:5]", 30, "x") == [2, 3, 4]
    assert split_indices("train[-2:]", 30, "x") == [28, 29]
    assert split_indices("train[:1]+train[-1:]", 30, "x") == [0, 29]
    for count in (7, 30, 101):  # what is held out is not trained on, and nothing falls between
        parts = split_indices("train[:90%]", count, "x") + split_indices("train[90%:]", count, "x")
        assert parts == list(range(count))


@pytest.mark.parametrize("split", ["test", "nonsense", "all", "test[:10%]", "train+test", "Train"])
def test_a_file_has_one_split(split: str) -> None:
    with pytest.raises(ValueError, match="^a.jsonl: has no split .* a file is one split, 'train'"):
        split_indices(split, 30, "a.jsonl")


@pytest.mark.parametrize("split", ["train[:150%]", "train[:99]", "train[", "train[a:b]", "train[3]", "train[:2]+test"])
def test_parts_that_cannot_be(split: str) -> None:
    with pytest.raises(ValueError, match="^a.jsonl: the split .* cannot be had of 30 records; write a part"):
        split_indices(split, 30, "a.jsonl")


@pytest.mark.parametrize("split", ["train[:0]", "train[20:10]", "train[:1%]"])
def test_empty_parts_are_refused(split: str) -> None:
    with pytest.raises(ValueError, match="^a.jsonl: the split .* of 30 records is empty"):
        split_indices(split, 30, "a.jsonl")
