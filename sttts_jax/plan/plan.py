"""Plans of a run, one a bucket. Each is compiled in a process of its own, which limits and the system may end.

for plan in plan_run(config, make_target(topology="v5p:2x2x4")):
    print(plan.fits, plan.peak_gib, plan.step_seconds)
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sttts_jax.plan.target import GIB, Target
from sttts_jax.train.config import RunConfig

_POLL_S = 0.2
_LAST = 20  # lines of the compiler's own words that are shown where it ends without an answer


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One bucket of a run on a target. Sizes in GiB of one device, times in seconds.

    fits            the step's peak is at most hbm_gib; where the compiler refuses, peak_gib is what it asks for
    parameters_gib, optimizer_gib, batch_gib, activations_gib, temporaries_gib, program_gib   parts of the peak
    flops           of a step on all devices, by arithmetic, with what `remat` makes again
    compiled_flops  matrix products and kernels of the compiled program, on all devices
    step_seconds    the roofline: the largest of compute_s, hbm_s and the sum of interconnect_s; no step is faster
    interconnect_s  by axes of the mesh, "data+fsdp" are rings over both
    compiler_s      the compiler's own estimate, its instructions one after the other; None where it has none
    collectives     of a step on one device, by kind, what they carry and axes; see `plan.collectives`
    listing         each of them
    advice          what to change where it does not fit
    """

    target: str
    pruned_fraction: str
    devices: int
    device_kind: str
    mesh: Mapping[str, int]
    kernels: str
    remat: str
    accumulate: int
    rows: int
    row_length: int
    fits: bool
    peak_gib: float
    hbm_gib: float
    parameters_gib: float
    optimizer_gib: float
    batch_gib: float
    activations_gib: float
    temporaries_gib: float
    program_gib: float
    flops: float
    trace_s: float
    compile_s: float
    compiled_flops: float | None = None
    hbm_bytes: int | None = None
    step_seconds: float | None = None
    bound: str = ""
    compute_s: float | None = None
    hbm_s: float | None = None
    interconnect_s: Mapping[str, float] = field(default_factory=dict)
    compiler_s: float | None = None
    collectives: tuple[Mapping[str, Any], ...] = ()
    listing: tuple[Mapping[str, Any], ...] = ()
    advice: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As it stands in files."""
        return dataclasses.asdict(self)


def plan_run(
    config: Mapping[str, Any], target: Target, *, timeout_s: float = 3600, memory_gib: float | None = None
) -> Iterator[Plan]:
    """A plan for every bucket of a config, compiled for `target`, which need not be there.

    config      as `train` takes it; neither data nor checkpoint nor tokenizer is looked at
    timeout_s   of one bucket; memory_gib: of the process that compiles

    Raises ValueError with one sentence for a config that contradicts itself or does not fit the mesh, a limit that is
    reached, and a compiler that ends by itself.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for number, bucket in enumerate(RunConfig.build(raw).buckets):
        request = {"config": raw, "bucket": number, "target": target.as_json()}
        found = _ask(request, target, f"k = {bucket.pruning.removed} on {target.name}", timeout_s, memory_gib)
        yield Plan(target=target.name, **found)


def _ask(
    request: dict[str, Any], target: Target, what: str, timeout_s: float, memory_gib: float | None
) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    target.set_environment(environment)
    with tempfile.TemporaryDirectory(prefix="sttts_plan_") as folder:
        asked, answered, said = (Path(folder, name) for name in ("request.json", "answer.json", "stderr"))
        asked.write_text(json.dumps(request))
        command = [sys.executable, "-m", "sttts_jax.plan.child", str(asked), str(answered)]
        code = _run(command, environment, said, lambda child: _wait(child, what, timeout_s, memory_gib))
        if code != 0 or not answered.exists():
            raise ValueError(_died(what, code, said.read_text(errors="replace")))
        answer = json.loads(answered.read_text())
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return answer


def _run(
    command: list[str], environment: dict[str, str], said: Path, wait: Callable[[subprocess.Popen[bytes]], int]
) -> int:
    """What `wait` gives of the process; it is ended whatever happens. `said`: a file for what it writes."""
    with said.open("wb") as errors:
        child = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True)
    try:
        return wait(child)
    finally:
        _end(child)


def _wait(child: subprocess.Popen[bytes], what: str, timeout_s: float, memory_gib: float | None) -> int:
    """The exit code. Raises ValueError where a limit is reached."""
    begun = time.monotonic()
    while (code := child.poll()) is None:
        if time.monotonic() - begun > timeout_s:
            raise ValueError(
                f"{what}: not compiled after {timeout_s:g} s, which is --timeout; give more, or fewer layers "
                "(--config.model.overrides.llm.layers=2) for a quick look"
            )
        if memory_gib is not None and _resident(child.pid) > memory_gib * GIB:
            raise ValueError(f"{what}: the compiler takes more than --memory_gib={memory_gib:g}; give more")
        time.sleep(_POLL_S)
    return code


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds, 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _died(what: str, code: int, said: str) -> str:
    if code == -signal.SIGKILL:
        return f"{what}: the compiler was killed, as systems do where memory ends; compile on a larger machine"
    last = "\n".join(said.strip().splitlines()[-_LAST:])
    return f"{what}: the compiler ended with exit code {code}; its last words:\n{last}"
