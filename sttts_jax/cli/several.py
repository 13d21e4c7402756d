"""A command as one of several processes: under a supervisor, and ended at once when it fails."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable

from sttts_jax.cli.main import say_error
from sttts_jax.processes import supervisor
from sttts_jax.processes.config import DistributedConfig
from sttts_jax.processes.find import find
from sttts_jax.processes.pulse import PIPES


def run(name: str, argv: list[str], config: DistributedConfig, body: Callable[[], int]) -> int:
    """What `body` returns, where this process is alone. Else a supervisor takes its place and starts the command again.

    argv: the words after the command.
    """
    place = find(config)
    if place.alone:
        return body()
    if PIPES not in os.environ:
        settings = supervisor.Settings(name, place.process_id, place.processes, config.heartbeat_s)
        words = json.dumps(dataclasses.asdict(settings)), sys.executable, "-m", f"sttts_jax.cli.{name}", *argv
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", supervisor.__name__, *words])
    try:
        return body()
    except (Exception, KeyboardInterrupt) as error:
        code = say_error(name, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at the interpreter's own end JAX would wait for the others
