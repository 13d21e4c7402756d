"""`sttts-jax COMMAND ...`: finds the file of the command, imports it only then, says user mistakes in one sentence.

A command is a module `sttts_jax.cli.COMMAND` with `main(argv: list[str]) -> int | None`. It ends with

    if __name__ == "__main__":
        sys.exit(run("COMMAND", main))

or is a package whose `__main__.py` does that, so that `python -m sttts_jax.cli.COMMAND` is the same as
`sttts-jax COMMAND`.
"""

import difflib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable

from absl import flags

import sttts_jax
from sttts_jax.tpu_flags import set_tpu_flags

Command = Callable[[list[str]], int | None]

# Name and one line, in the order a newcomer meets them.
COMMANDS = {
    "data": "build, inspect and list datasets",
    "train": "train a model from a config file; the same command resumes",
    "evaluate": "answer benchmark questions from a checkpoint; accuracy with intervals",
    "answer": "answer questions about videos and images",
    "score": "show which parts of a video a checkpoint keeps",
    "inspect": "print what is in a checkpoint, on any machine",
    "convert": "Hugging Face safetensors to Orbax, and back",
    "bench": "measure pruning, training, inference or data loading",
}

# What a user can mend: printed as one sentence. Anything else is a bug and keeps its traceback.
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


def usage() -> str:
    """The text of `sttts-jax --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sttts-jax COMMAND [ARGUMENT ...]",
            "",
            "Train, evaluate and run video VLMs whose vision tokens are pruned by STTS.",
            "",
            "commands:",
            *lines,
            "",
            "`sttts-jax COMMAND --help` lists the arguments of a command. STTTS_DEBUG=1 shows full tracebacks.",
        ]
    )


def run(name: str, command: Command, argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 a mistake of the user, said in one sentence on stderr.

    `argv` are the words after the command; None reads them from the process.
    """
    set_tpu_flags()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show, or no UTF-8 can say, ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()  # a disk that is full shows here, not at exit
        return code
    except BrokenPipeError:  # the reader of our output went away (`sttts-jax ... | head`)
        _drop_output_that_fails()
        return 141
    except KeyboardInterrupt:
        print(f"sttts-jax {name}: interrupted", file=sys.stderr)
        return 130
    except (*USER_ERRORS, OSError) as error:
        mendable = isinstance(error, USER_ERRORS) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)
        if not mendable or os.environ.get("STTTS_DEBUG") == "1":
            raise
        print(f"sttts-jax {name}: error: {_sentence(error)}", file=sys.stderr)
        _drop_output_that_fails()
        return 2


def _drop_output_that_fails() -> None:
    """Where standard output cannot be written, what is left of it goes nowhere, so that the flush at exit succeeds."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script. `argv` excludes the program name; None reads it from the process."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] in ("--version", "-V"):
        print(f"sttts-jax {sttts_jax.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"sttts-jax: error: {_unknown(argv[0])}", file=sys.stderr)
        return 2
    name = argv[0]
    # Imported inside of run(), which also takes Ctrl-C during the seconds that importing JAX takes.
    return run(name, lambda rest: importlib.import_module(f"sttts_jax.cli.{name}").main(rest), argv[1:])


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    if close:
        return f"there is no command {name!r}; did you mean {close[0]!r}?"
    return f"there is no command {name!r}; choose one of: {', '.join(COMMANDS)}"


def _sentence(error: BaseException) -> str:
    """The message; of an OSError the file and the cause; of a message that is not this package's, where it is from."""
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in DISK_ERRORS):
        place, advice = error.filename, DISK_ERRORS.get(error.errno or 0)
        return (f"{place}: " if place else "") + error.strerror + (f"; {advice}" if advice else "")
    message = str(error).strip() or type(error).__name__
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames and not frames[-1].startswith(("sttts_jax", "configs", "__main__", "absl.flags")):
        message += f" (raised by {frames[-1]}; STTTS_DEBUG=1 shows how it came to that)"
    return message


if __name__ == "__main__":
    sys.exit(main())
