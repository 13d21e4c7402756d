"""`bench tpu`: a pruned ViT block compiled for a TPU that is not there, and what the compiler expects of it.

Times are the compiler's own estimates and know nothing of stalls; bytes are those between HBM and the core, see
`plan.traffic`. Both the pruned and the unpruned block run on the Pallas kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from sttts_jax.bench.bound import PASSES, pass_flops
from sttts_jax.bench.distributions import make_scores
from sttts_jax.bench.record import versions
from sttts_jax.bench.scopes import BenchShapes
from sttts_jax.bench.timing import GIB
from sttts_jax.compiler_flags import set_compiler_flags
from sttts_jax.models.presets import preset
from sttts_jax.models.vit_block import Block
from sttts_jax.paths import PathLike, write_json
from sttts_jax.plan.hlo import read_program
from sttts_jax.plan.traffic import free_calls, hbm_bytes
from sttts_jax.pruning.layout import survivors, whole_frames
from sttts_jax.pruning.select import select_cells
from sttts_jax.topology import by_topology, find_compiler, tpu_devices

# The smallest slice of each chip.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class CompiledRow:
    """One compiled pass of one block.

    seconds    of the compiler's estimate, None where it gives none that makes sense
    speedup    unpruned seconds / these, `share` of `bound`, the ratio of the FLOPs
    hbm_gb     bytes between HBM and the core / 1e9; `hbm_ratio` against the unpruned block
    temp_gib   temporary memory
    """

    what: str
    chip: str
    pass_: str
    k: float
    frames: int
    seconds: float | None
    speedup: float | None
    bound: float
    share: float | None
    hbm_gb: float
    hbm_ratio: float
    temp_gib: float

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in the file."""
        return {name.rstrip("_"): value for name, value in asdict(self).items()}


def run(
    chip: str,
    name: str,
    frames: int,
    batch: int,
    fractions: Sequence[Fraction],
    path: PathLike | None,
    command: str,
    say: Say,
) -> None:
    """The whole measurement of the ViT of the preset `name`, a line a program; writes `path`, if any."""
    shapes = BenchShapes(preset(name).vit, frames, batch, jnp.bfloat16, attention="tpu")
    rows = measure(chip, shapes, fractions, say)
    if path:
        write_json(path, {"command": command, **versions(), "rows": [row.as_json() for row in rows]})


def measure(chip: str, shapes: BenchShapes, fractions: Sequence[Fraction], say: Say) -> list[CompiledRow]:
    """Rows of the unpruned block and of every fraction, for both passes; survivors as with uniform scores."""
    slices = by_topology(CHIPS[chip])
    find_compiler(slices.accelerator)
    set_compiler_flags(chip)
    place = SingleDeviceSharding(tpu_devices(slices)[0])
    rows: list[CompiledRow] = []
    first: dict[str, CompiledRow] = {}
    for fraction in (Fraction(0), *fractions):
        for name in PASSES:
            row = _compile(chip, shapes, fraction, name, place, first.get(name))
            first.setdefault(name, row)
            rows.append(row)
            say(_line(row))
    return rows


def _line(row: CompiledRow) -> str:
    time = "no estimate" if row.seconds is None else f"{row.seconds * 1e3:.3f} ms"
    gain = (
        "" if row.share is None or not row.k else f", {row.speedup:.2f} x of {row.bound:.2f} x: share {row.share:.3f}"
    )
    return f"{row.pass_}, k={row.k:g}: {time}{gain}; {row.hbm_gb:.2f} GB ({row.hbm_ratio:.2f} of unpruned)"


def _compile(
    chip: str, shapes: BenchShapes, fraction: Fraction, name: str, place: Any, base: CompiledRow | None
) -> CompiledRow:
    function, args = _program(shapes, fraction, name == "train")
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    compiled: Any = jax.jit(function).lower(*args).compile()
    memory: Any = compiled.memory_analysis()
    seconds = _seconds(compiled)
    gigabytes = hbm_bytes(read_program(compiled.as_text())) / 1e9
    counts = None
    if fraction:
        scores = make_scores("uniform", shapes.seed, shapes.batch, shapes.frames, shapes.vit.cells, fraction)
        counts = np.asarray(shapes.keep(scores, fraction).mask.sum(axis=-1))
    cost_of = [pass_flops(name, "layer", shapes.vit, c, shapes.frames, shapes.batch, "none") for c in (None, counts)]
    bound = cost_of[0] / cost_of[1]
    speedup = None
    if seconds is not None and (base is None or base.seconds is not None):
        speedup = 1.0 if base is None or base.seconds is None else base.seconds / seconds
    return CompiledRow(
        what="layer",
        chip=chip,
        pass_=name,
        k=float(fraction),
        frames=shapes.frames,
        seconds=seconds,
        speedup=speedup,
        bound=bound,
        share=None if speedup is None else speedup / bound,
        hbm_gb=gigabytes,
        hbm_ratio=1.0 if base is None else gigabytes / base.hbm_gb,
        temp_gib=memory.temp_size_in_bytes / GIB,
    )


def _seconds(compiled: Any) -> float | None:
    """The compiler's estimate of a run, or None where it makes no sense."""
    seconds = compiled.cost_analysis()["optimal_seconds"] + free_calls(compiled.as_text())
    return seconds if 0 < seconds < 1 else None


def _program(shapes: BenchShapes, fraction: Fraction, train: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(a block on all frames or on survivors, abstract arguments); the layout is one of them, as in the model."""
    vit, grid, batch, frames = shapes.vit, shapes.grid, shapes.batch, shapes.frames
    block = Block(vit, shapes.dtype)
    x: Any = jax.ShapeDtypeStruct((batch, frames, vit.cells, vit.window, vit.width), shapes.dtype)
    if fraction:
        rows = jax.eval_shape(lambda: shapes.rows)
        scores = jax.ShapeDtypeStruct((batch, frames, vit.cells), jnp.float32)
        capacity = shapes.capacity(fraction)
        kept = jax.eval_shape(lambda scores, rows: select_cells(scores, rows, fraction, capacity), scores, rows)
        layout = jax.eval_shape(lambda kept: survivors(grid, kept, "tpu"), kept)
    else:
        layout = jax.eval_shape(lambda: whole_frames(grid, x.shape, "tpu"))
    x = jax.eval_shape(lambda layout, x: layout.pack(x), layout, x)
    params = jax.eval_shape(lambda x, layout: block.init(jax.random.key(0), x, layout), x, layout)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, shapes.dtype), nn.unbox(params))

    def forward(params: Any, x: jax.Array, layout: Any) -> Any:
        return block.apply(params, x, layout)[0]

    def both(params: Any, x: jax.Array, layout: Any, slope: jax.Array) -> Any:
        return jax.vjp(lambda params, x: forward(params, x, layout), params, x)[1](slope)

    return (both, (params, x, layout, x)) if train else (forward, (params, x, layout))
