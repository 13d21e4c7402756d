"""`sttts-jax COMMAND ...`: finds the file of the command, imports it only then, says user mistakes in one sentence.

A command is a module `sttts_jax.cli.COMMAND` with `main(argv: list[str]) -> int | None`. It ends with

    if __name__ == "__main__":
        sys.exit(run("COMMAND", main))

or is a package whose `__main__.py` does that, so that `python -m sttts_jax.cli.COMMAND` is the same as
`sttts-jax COMMAND`.
"""

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable

import sttts_jax
from sttts_jax import exit_codes
from sttts_jax.compiler_flags import set_compiler_flags

Command = Callable[[list[str]], int | None]

# Name and one line, in the order a newcomer meets them.
COMMANDS = {
    "data": "build, inspect and list datasets",
    "plan": "compile a training step for devices that are not there: memory, time, collectives",
    "train": "train a model from a config file; the same command resumes",
    "evaluate": "answer benchmark questions from a checkpoint; accuracy with intervals",
    "answer": "answer questions about videos and images",
    "score": "show which parts of a video a checkpoint keeps",
    "inspect": "print what is in a checkpoint, on any machine",
    "convert": "Hugging Face safetensors to Orbax, and back",
    "bench": "measure pruning, training, inference or data loading",
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
    """Runs one command and returns its exit code, see `exit_codes`; a mistake of the user is one sentence on stderr.

    `argv` are the words after the command; None reads them from the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show, or no UTF-8 can say, ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        set_compiler_flags()
        code = command(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()  # a disk that is full shows here, not at exit
        return code
    except (Exception, KeyboardInterrupt) as error:
        if _is_bug(error):
            raise
        return say_error(name, error)


def _is_bug(error: BaseException) -> bool:
    code = exit_codes.code_of(error)
    debug = os.environ.get("STTTS_DEBUG") == "1" and code in (exit_codes.MISTAKE, exit_codes.HANG)
    return code == exit_codes.FAILED or debug


def say_error(name: str, error: BaseException) -> int:
    """Says why a command ends, on stderr, and returns its exit code: one sentence, or the traceback of a bug."""
    code = exit_codes.code_of(error)
    if _is_bug(error):
        traceback.print_exception(error)
    elif code == exit_codes.INTERRUPTED:
        print(f"sttts-jax {name}: interrupted", file=sys.stderr)
    elif code != exit_codes.NO_READER:
        print(f"sttts-jax {name}: error: {exit_codes.sentence(error)}", file=sys.stderr)
    if code != exit_codes.INTERRUPTED:
        _drop_output_that_fails()
    return code


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


if __name__ == "__main__":
    sys.exit(main())
