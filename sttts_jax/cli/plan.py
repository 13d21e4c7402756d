"""sttts-jax plan --config X --topology v5p:4x4x4: compiles the step for devices that need not be there."""

import sys
from pathlib import Path
from typing import Any

from absl import flags
from etils import epy

from sttts_jax import exit_codes
from sttts_jax.cli.main import run as run_command

with epy.lazy_imports():
    from sttts_jax import api, paths
    from sttts_jax.cli import settings
    from sttts_jax.plan import report

USAGE = """usage: sttts-jax plan --config NAME|FILE[:ARGUMENTS] TARGET [--config.KEY=VALUE ...] [--json FILE]

Compiles the step that `train` would run with this config, one for every removed share, and says whether it fits, how
memory is used, what travels between devices, and how fast a step can be. No data, checkpoint or tokenizer is read, and
nothing runs: a machine without the devices is enough (TPUs: pip install 'sttts-jax[aot]').

TARGET is one of
  --topology v5p:4x4x4          a TPU slice by its shape; v4, v5e, v5p, v6e, tpu7x
  --accelerator v5p-128         the same by the name that clouds sell it under; also v5e-256, v6e-256, v4-64
  --device cpu|gpu              CPUs, as many as --devices says, or the GPUs of this machine
with
  --slices N                    so many slices, joined by the data centre's network (1)
  --devices N                   of --device
and
  --timeout SECONDS             of one compilation (3600)
  --memory_gib GIB              that the compiler may take (no limit)
  --json FILE                   writes everything, each collective too
  --config.KEY=VALUE            another value of any key, as for `train`

`sttts-jax plan --table DIR` prints the files of --json in DIR as one table.

Exit code 0: every step fits; 3: one does not."""


def main(argv: list[str]) -> int:
    """Plans. Raises ValueError with one sentence."""
    if any(word in ("--help", "-h", "--helpfull") for word in argv):
        print(USAGE)
        return 0
    values = settings.read_flags("plan", argv, _define)
    if values.table:
        print(report.table_of(values.table))
        return 0
    if values.config is None:
        raise ValueError("--config NAME|FILE is needed; --help lists all flags")
    if values.json and Path(values.json).is_dir():
        raise ValueError(f"--json {values.json} is a directory; name a file in it")
    name = settings.config_name(values)
    plans: list[Any] = []
    for plan in api.plan(values.config, **_target(values), timeout_s=values.timeout, memory_gib=values.memory_gib):
        plans.append(plan)
        print(("\n" if len(plans) > 1 else "") + report.describe(plan), flush=True)
        if values.json:
            paths.write_json(values.json, {"config": name, "plans": [one.as_json() for one in plans]})
    return 0 if all(plan.fits for plan in plans) else exit_codes.DOES_NOT_FIT


def _target(values: flags.FlagValues) -> dict[str, Any]:
    return {name: values[name].value for name in ("topology", "accelerator", "slices", "device", "devices")}


def _define(values: flags.FlagValues) -> None:
    for name in ("topology", "accelerator", "device", "json", "table"):
        flags.DEFINE_string(name, "", "see USAGE", flag_values=values)
    flags.DEFINE_integer("slices", 1, "see USAGE", flag_values=values)
    flags.DEFINE_integer("devices", 0, "see USAGE", lower_bound=0, flag_values=values)
    flags.DEFINE_float("timeout", 3600.0, "see USAGE", lower_bound=1.0, flag_values=values)
    flags.DEFINE_float("memory_gib", None, "see USAGE", lower_bound=0.1, flag_values=values)


if __name__ == "__main__":
    sys.exit(run_command("plan", main))
