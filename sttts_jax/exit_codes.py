"""How a command ends: its exit code, which launchers act on, and one sentence about an error.

The one owner of both. `sttts-jax train --help` and docs/runs.md show the table.
"""

import errno
import traceback
from collections.abc import Iterator

from absl import flags

DONE = 0
FAILED = 1
MISTAKE = 2
DOES_NOT_FIT = 3
PREEMPTED = 42  # the default of checkpoint.preempted_exit_code
INTERRUPTED = 130
NO_READER = 141
HANG = 170

MEANINGS = {
    DONE: "everything that was asked is done; of `train`: every step",
    FAILED: "an error of the program, with a traceback",
    MISTAKE: "a mistake that the user can mend, in one sentence; trying again would not help",
    DOES_NOT_FIT: "`plan`: a step does not fit into the devices' memory; what to change is said",
    PREEMPTED: "`train` was told to end (SIGTERM, SIGHUP) before its last step, and saved: the same command goes on "
    "(checkpoint.preempted_exit_code)",
    INTERRUPTED: "Ctrl-C; `train` saved",
    NO_READER: "the reader of the output went away",
    HANG: "nothing went on for a deadline's time, or another process of the run is gone: start all of them again",
}
SIGNALLED = "128 + N", "ended by signal N without a word, such as 137 by SIGKILL"

# What a user can mend: told in one sentence. Anything else is a bug and keeps its traceback.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    flags.Error,
)
# Of other failures of files, those that are a matter of the disk and not of the program.
DISK_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or choose another place"),
    errno.EROFS: "choose another place",
    errno.EFBIG: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or its connection fails",
}
STORE_CLIENTS = ("gcsfs", "aiohttp", "google", "requests")  # packages, whose errors have no class in common
NO_STORE = "the store does not answer, or refuses; check the bucket's name, the network and the credentials"
NO_MEMORY = "memory runs out; ask for less at a time: fewer rows, frames, tokens or questions"


class OthersLost(RuntimeError):
    """The other processes of a run did not come."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after all that was asked of the run's end is done: it is saved."""


def table() -> Iterator[tuple[str, str]]:
    """(code, what it says), ascending."""
    yield from ((str(code), meaning) for code, meaning in MEANINGS.items())
    yield SIGNALLED


def code_of(error: BaseException) -> int:
    """The exit code of a command that ends by this error."""
    if isinstance(error, BrokenPipeError):
        return NO_READER
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OthersLost):
        return HANG
    mendable = isinstance(error, USER_ERRORS) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)
    return MISTAKE if mendable or _is_of_memory(error) or _is_of_store(error) else FAILED


def _is_of_memory(error: BaseException) -> bool:
    """Of the host, or of a device, as XLA says it."""
    said = ("RESOURCE_EXHAUSTED", "Out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in said))


def _is_of_store(error: BaseException) -> bool:
    """Whether the client of gs:// made it, or raised an OSError without a number."""
    makers = [type(error).__module__, *(_raisers(error)[-1:] if isinstance(error, OSError) else [])]
    return any(maker.partition(".")[0] in STORE_CLIENTS for maker in makers)


def _raisers(error: BaseException) -> list[str]:
    """The modules that it came through; the last one raised it."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]


def sentence(error: BaseException) -> str:
    """The message; of an OSError the file and the cause; of a message that is not this package's, where it is from."""
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in DISK_ERRORS):
        place, advice = error.filename, DISK_ERRORS.get(error.errno or 0)
        return (f"{place}: " if place else "") + error.strerror + (f"; {advice}" if advice else "")
    message = str(error).strip() or type(error).__name__
    if _is_of_memory(error):
        return f"{NO_MEMORY} ({message.splitlines()[0][:200]})"
    if _is_of_store(error) and not isinstance(error, USER_ERRORS):
        return f"{NO_STORE} ({message.splitlines()[0][:200]})"
    raisers = _raisers(error)
    if raisers and not raisers[-1].startswith(("sttts_jax", "configs", "__main__", "absl.flags")):
        message += f" (raised by {raisers[-1]}; STTTS_DEBUG=1 shows how it came to that)"
    return message
