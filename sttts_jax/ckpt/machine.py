"""What leases call the machine that a process is on."""

import contextlib
import os
import socket


def name_of_this_machine() -> str:
    """With the namespace of its process ids, which tells containers of one host name apart."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return f"{name}?pidns-{os.stat('/proc/self/ns/pid').st_ino:x}"
    return name


def names_of_this_machine() -> set[str]:
    """The plain one too: `filelock` adds the namespace in containers alone."""
    return {socket.gethostname(), name_of_this_machine()}
