"""The one table of exit codes: what launchers rely on, what docs and help show, what each kind of end gives."""

import errno
from pathlib import Path

import ml_collections
import pytest

from sttts_jax import exit_codes
from sttts_jax.cli import train

ROOT = Path(__file__).parents[1]
RESTARTED = {42, *range(127, 256)}  # by the JobSets that xpk and ours make; others fail the job at once


def test_launchers_start_again_what_can_go_on_and_nothing_else() -> None:
    again = {exit_codes.PREEMPTED, exit_codes.HANG}
    assert again == {42, 170} and again <= RESTARTED
    assert not {exit_codes.DONE, exit_codes.FAILED, exit_codes.MISTAKE} & RESTARTED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError("x"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (OSError(errno.EBADF, "Bad file descriptor"), 1),
        (RuntimeError("x"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 2),
        (MemoryError(), 2),
        (type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})("Not allowed, 401"), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_the_kind_of_an_error_gives_the_code(error: BaseException, code: int) -> None:
    assert exit_codes.code_of(error) == code


def test_a_store_that_does_not_answer_is_one_sentence() -> None:
    client = {"__name__": "gcsfs.retry"}
    exec("def ask(): raise OSError('Forbidden: bucket/run\\nno access')", client)  # as its client says it
    with pytest.raises(OSError, match="Forbidden") as raised:
        client["ask"]()
    assert exit_codes.code_of(raised.value) == exit_codes.MISTAKE
    assert exit_codes.sentence(raised.value) == f"{exit_codes.NO_STORE} (Forbidden: bucket/run)"
    assert exit_codes.code_of(OSError("Forbidden")) == exit_codes.FAILED


def test_training_is_done_only_with_its_last_step() -> None:
    config = ml_collections.ConfigDict({"total_steps": 5, "checkpoint": {"preempted_exit_code": 7}})
    assert (train.exit_code(5, config), train.exit_code(4, config)) == (0, 7)


def test_the_page_and_the_help_show_the_table() -> None:
    page = (ROOT / "docs/runs.md").read_text()
    shown = " ".join(train.usage([]).split())
    for code, meaning in exit_codes.table():
        assert f"| {code} | {meaning} |" in page
        assert f"{code} {meaning}" in shown
