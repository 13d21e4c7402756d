"""What libtpu, the compiler of TPUs, is told when a process loads it."""

import os
from collections.abc import MutableMapping

_VARIABLE = "LIBTPU_INIT_ARGS"
# A fusion may use 64 MiB of the chip's fast memory (the default is 16): then both matrix products of an MLP become one
# whatever the number of tokens, which the compiler does at some lengths only otherwise. Chips with less take what they
# have. A product whose result has more MiB than the other flag says becomes a loop over the shards of its weights, in
# steps of a sum of 1152 / fsdp terms. At 64 frames that made 52 more programs of a step, with which the compiler did
# not end in 25 minutes, so never.
_DEFAULTS = {
    "--xla_tpu_scoped_vmem_limit_kib": 64 * 1024,
    "--xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000,
}


def set_tpu_flags(environment: MutableMapping[str, str] | None = None) -> None:
    """Adds our defaults to LIBTPU_INIT_ARGS; flags that are there stay. Must come before JAX touches a device.

    environment: None is the process's own, which no signature must show: `help` prints defaults.
    """
    environment = os.environ if environment is None else environment
    words = environment.get(_VARIABLE, "").split()
    given = {word.split("=")[0] for word in words}
    words += [f"{flag}={value}" for flag, value in _DEFAULTS.items() if flag not in given]
    environment[_VARIABLE] = " ".join(words)
