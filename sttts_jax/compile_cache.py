"""Compiled programs on disk, so that a command that runs again does not compile again.

JAX finds a program by its text, the compiler with its flags, and the kind of the devices; of CPUs the instruction set
is a part, so a home directory may be shared by different machines. What compiles in less than a second is not kept
(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS changes that).
"""

import os
from pathlib import Path

import jax
from absl import logging

from sttts_jax.paths import as_path, is_local

MAX_BYTES = 2 * 2**30  # of `user_directory`: the programs that were used longest ago go first


def use_compile_cache(where: str = "auto") -> str:
    """Keeps what is compiled from here on in a directory, and returns it; "" where nothing is kept.

    where: "auto" is `user_directory()` for a process alone, and nothing for several: those that find a program wait for
    those that compile it, which collectives on CPUs do for 30 s only. "off", or a directory, local or gs://, that all
    processes read and the first one writes. What JAX was told before wins: JAX_COMPILATION_CACHE_DIR, or an earlier
    call. A directory that cannot be written is a warning.

    Must come after `distributed.joined` and before anything compiles.
    """
    told: str | None = jax.config.values["jax_compilation_cache_dir"]
    if told is not None:
        return told
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if where == "off" or (where == "auto" and several):
        return ""
    directory = os.fspath(as_path(user_directory() if where == "auto" else where))
    if not is_local(directory):
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA itself writes to local files alone
    elif not _is_writable(directory):
        return ""
    if where == "auto":
        _limit_size(directory)
    jax.config.update("jax_compilation_cache_dir", directory)
    return directory


def user_directory() -> str:
    """$XDG_CACHE_HOME/sttts_jax/compiled, or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else "~/.cache", "sttts_jax", "compiled")


def _is_writable(directory: str) -> bool:
    """Makes the directory where it is not there, for this user alone: what lies in it is run."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        problem = "" if os.access(directory, os.W_OK | os.X_OK) else "it cannot be written"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        logging.warning("compiled programs are not kept in %s: %s", directory, problem)
    return not problem


def _limit_size(directory: str) -> None:
    """MAX_BYTES, where the user's JAX_COMPILATION_CACHE_MAX_SIZE says nothing.

    JAX writes a program, then the time of its last use. A process that was killed between the two leaves a program
    without one, at which JAX would stop every time it looks for the oldest.
    """
    if jax.config.values["jax_compilation_cache_max_size"] < 0:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    for program in Path(directory).glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)
