"""Sizes that compilers say, and the kinds that a peak is made of."""

import pytest

from sttts_jax.plan.memory import Memory, exhausted

MESSAGE = "RESOURCE_EXHAUSTED: {}"


@pytest.mark.parametrize(
    ("text", "need", "have"),
    [
        ("Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded capacity by 4.25G.", 20, 15.75),
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 1.5T of 95.74G", 1536, 95.74),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (640.00G) exceeds available HBM "
            "(15.75G).",
            640,
            15.75,
        ),
    ],
)
def test_what_is_missing_is_read(text: str, need: float, have: float) -> None:
    assert exhausted(MESSAGE.format(text)) == (int(need * 2**30), int(have * 2**30))


def test_other_failures_are_not_taken_for_it() -> None:
    assert exhausted("INTERNAL: Used 2G of 1G") is None
    assert exhausted(MESSAGE.format("too many things")) is None


def test_the_peak_is_its_parts() -> None:
    assert Memory(1, 2, 3, 4, 5, 6).peak == 21
