"""A plan as people read it, and many as one table."""

import json
from collections.abc import Iterable
from pathlib import Path

from sttts_jax.paths import PathLike
from sttts_jax.plan.plan import Plan
from sttts_jax.text_table import text_table

TERA, PETA, MIB = 1e12, 1e15, 2**20


def describe(plan: Plan) -> str:
    """Lines: what was planned, whether it fits, memory by kind, FLOPs, collectives, seconds, what to change."""
    mesh = " x ".join(f"{name}={size}" for name, size in plan.mesh.items() if size > 1) or "one device"
    head = (
        f"k = {plan.pruned_fraction} on {plan.target}: {plan.devices} x {plan.device_kind}, {mesh}, "
        f"{plan.rows} rows of {plan.row_length:,} tokens, remat={plan.remat}, accumulate={plan.accumulate}, "
        f"{plan.kernels} kernels"
    )
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    memory = (
        f"{verdict}: {plan.peak_gib:.2f} of {plan.hbm_gib:.2f} GiB a device: parameters {plan.parameters_gib:.2f}, "
        f"optimizer {plan.optimizer_gib:.2f}, batch {plan.batch_gib:.2f}, activations {plan.activations_gib:.2f}, "
        f"temporaries {plan.temporaries_gib:.2f}, program {plan.program_gib:.2f}"
    )
    lines = [head, memory, *(f"  {line}" for line in plan.advice)]
    flops = f"TFLOPs of a step on all devices: {plan.flops / TERA:,.3f} by arithmetic"
    if plan.compiled_flops is not None:
        flops += f", {plan.compiled_flops / TERA:,.3f} in the compiled program"
    lines += [flops, *_seconds(plan), *_collectives(plan)]
    return "\n".join([*lines, f"traced in {plan.trace_s:.1f} s, compiled in {plan.compile_s:.1f} s"])


def _seconds(plan: Plan) -> list[str]:
    if plan.step_seconds is None or plan.compute_s is None or plan.hbm_s is None:
        return []
    links = sum(plan.interconnect_s.values())
    by_axes = ", ".join(f"{axes} {seconds:.4f}" for axes, seconds in plan.interconnect_s.items())
    own = "" if plan.compiler_s is None else f"; the compiler's own estimate is {plan.compiler_s:.4f} s"
    return [
        f"a step takes at least {plan.step_seconds:.4f} s ({plan.bound}): compute {plan.compute_s:.4f}, "
        f"HBM {plan.hbm_s:.4f}, interconnect {links:.4f}" + (f" ({by_axes})" if by_axes else "") + own
    ]


def _collectives(plan: Plan) -> list[str]:
    rows = [
        (one["kind"], one["carries"], "+".join(one["axes"]), str(one["count"]), f"{one['bytes'] / MIB:,.2f}")
        for one in plan.collectives
    ]
    if not rows:
        return []
    header = ("collective", "carries", "axes", "times", "MiB a device")
    return text_table(header, rows).splitlines()


def plan_table(plans: Iterable[tuple[str, Plan]]) -> str:
    """Markdown, one line a plan; each comes with the name of its config."""
    names = ("config", "k", "rows x tokens", "target", "mesh", "fits", "GiB of HBM", "PFLOPs a step")
    header = (*names, "at least s a step", "bound", "at most MFU", "compile s")
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(_row(name, plan) for name, plan in plans)])


def _row(name: str, plan: Plan) -> str:
    mesh = ",".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "1"
    seconds, share = "", ""
    if plan.step_seconds is not None and plan.compute_s is not None:
        seconds, share = f"{plan.step_seconds:.3f}", f"{plan.compute_s / plan.step_seconds:.0%}"
    cells: tuple[str, ...] = (
        name,
        plan.pruned_fraction,
        f"{plan.rows} x {plan.row_length:,}",
        plan.target,
        mesh,
        "yes" if plan.fits else "**no**",
        f"{plan.peak_gib:.1f} of {plan.hbm_gib:.0f}",
        f"{plan.flops / PETA:.1f}",
        seconds,
        plan.bound,
        share,
        f"{plan.compile_s:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def table_of(directory: PathLike) -> str:
    """`plan_table` of all files that `--json` wrote into a folder. Raises ValueError where there are none."""
    found: list[tuple[str, Plan]] = []
    for path in sorted(Path(directory).glob("*.json")):
        tree = json.loads(path.read_text())
        found += [(tree["config"], Plan(**plan)) for plan in tree["plans"]]
    if not found:
        raise ValueError(f"--table {directory}: no file in there was written by `sttts-jax plan --json`")
    return plan_table(found)
