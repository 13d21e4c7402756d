"""What `convert_from_hf` and `convert_to_hf` return: what was converted, and what it took."""

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol

from etils import epath

from sttts_jax.convert.disk import size_text
from sttts_jax.models.vit import SCORER_LEAVES
from sttts_jax.paths import PathLike


class Plan(Protocol):
    """What both directions plan before they write."""

    @property
    def tensors(self) -> int: ...

    @property
    def parameters(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Conversion:
    """What was written to `target`, or in a dry run would be; as text, the lines that the command prints.

    seconds       of the whole conversion
    peak_bytes    most memory that the process has had
    fresh         leaves that no file holds and that begin anew (to Orbax)
    warning       what a reader of the files cannot know, "" if nothing (to Hugging Face)
    """

    target: PathLike
    tensors: int
    parameters: int
    nbytes: int
    seconds: float
    peak_bytes: int
    dry_run: bool
    fresh: tuple[str, ...] = ()
    warning: str = ""

    @classmethod
    def of(cls, plan: Plan, target: PathLike, begun: float, dry_run: bool, **more: Any) -> "Conversion":
        """That of a plan which is carried out, begun at so many seconds of `time.perf_counter`."""
        seconds = time.perf_counter() - begun
        return cls(target, plan.tensors, plan.parameters, plan.nbytes, seconds, peak_bytes(), dry_run, **more)

    def __str__(self) -> str:
        lines = [f"{self.tensors:,} tensors, {self.parameters:,} parameters, {size_text(self.nbytes)}"]
        if self.dry_run:
            lines[0] += f": everything fits; nothing was written to {self.target}"
        else:
            took = f"in {self.seconds:.1f} s; peak memory of the process {size_text(self.peak_bytes)}"
            lines[0] += f" -> {self.target} {took}"
        if self.fresh:
            lines.append(f"fresh: {', '.join(self.fresh)}")
        if any(name.startswith(SCORER_LEAVES) for name in self.fresh):
            lines.append("the scorer is untrained: until it is trained, prune with --method easy, random or the like")
        if self.warning:
            lines.append(self.warning)
        return "\n".join(lines)


def peak_bytes() -> int:
    """The most memory that this process has had. On Linux since it began: rusage there counts its parent's as well."""
    status = epath.Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
