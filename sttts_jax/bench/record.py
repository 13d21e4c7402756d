"""What a run leaves behind: a header that says where it ran, a JSON file, a table, a plot."""

import dataclasses
import importlib.metadata
import io
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

import sttts_jax
from sttts_jax.bench.pruning import Plan, Row
from sttts_jax.paths import PathLike, write_bytes, write_json

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def header(plan: Plan, *, reduced: bool, ceiling: float, command: str) -> dict[str, Any]:
    """Where and on what the rows were measured; `ceiling` is the FLOP/s of a matrix product that `mfu` refers to."""
    device, shapes = jax.devices()[0], plan.shapes
    return {
        "command": command,
        "device": device.device_kind,
        "platform": device.platform,
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
        "dtype": jax.numpy.dtype(shapes.dtype).name,
        "sizes": dataclasses.asdict(shapes.vit),
        "reduced": reduced,
        "batch": shapes.batch,
        "seed": shapes.seed,
        "rounds": plan.rounds,
        "remat": shapes.remat,
        "matmul_flops_per_s": ceiling,
        "versions": {
            "python": platform.python_version(),
            "sttts_jax": sttts_jax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def write_rows(path: PathLike, head: dict[str, Any], rows: Sequence[Row], baselines: Sequence[Row]) -> None:
    """The JSON file: the header's fields, `baselines`, `rows`."""
    lines = {"baselines": [row.as_json() for row in baselines], "rows": [row.as_json() for row in rows]}
    write_json(path, {**head, **lines})


def rows_table(rows: Sequence[Row], baselines: Sequence[Row]) -> Table:
    """One line a variant, a line of the baseline before each pass and frame count."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("what", "pass", "frames", "k", "distribution", "packing"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "speed-up", "quartiles", "bound", "share", "FLOP/s", "temp GiB", "compiled"):
        table.add_column(name, justify="right", no_wrap=True)
    for base in baselines:
        table.add_row(*_cells(base), style="dim")
        for row in rows:
            if (row.pass_, row.frames) == (base.pass_, base.frames):
                table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    pruned = row.packing != "none"
    return [
        row.what,
        row.pass_,
        str(row.frames),
        f"{row.k:g}" if pruned else "",
        row.distribution if pruned else "unpruned",
        row.packing if pruned else "",
        f"{row.seconds:.4g}",
        f"{row.speedup:.2f} x" if pruned else "",
        f"{row.spread[0]:.2f} - {row.spread[1]:.2f}" if pruned else "",
        f"{row.bound:.2f} x" if pruned else "",
        f"{row.share:.2f}" if pruned else "",
        f"{row.flops_per_s:.3g}",
        f"{row.peak_gib:.3f}",
        f"{row.compilations} in {row.compile_s:.1f} s",
    ]


def write_plot(path: PathLike, rows: Sequence[Row], title: str) -> None:
    """Speed-up with its bound, and share of the bound, by k; a line of panels for every pass and frame count.

    The format is the suffix of `path`: png, svg or pdf.
    """
    panels = list(dict.fromkeys((row.pass_, row.frames) for row in rows))
    figure = Figure(figsize=(11, 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (speed, share), (name, frames) in zip(axes, panels, strict=True):
        chosen = [row for row in rows if (row.pass_, row.frames) == (name, frames)]
        _draw(speed, share, chosen)
        speed.set_title(f"{name}, {frames} frames")
        speed.set_ylabel("speed-up over unpruned (dashed: bound)")
        share.set_ylabel("share of the bound")
        share.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--")
        for axis in (speed, share):
            axis.set_xlabel("share of cells removed")
            axis.set_xticks(sorted({row.k for row in chosen}))
            axis.grid(alpha=0.25)
    axes[0][1].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=os.fspath(path).rpartition(".")[2].lower(), dpi=150)
    write_bytes(path, buffer.getvalue())


def _draw(speed: Axes, share: Axes, rows: Sequence[Row]) -> None:
    series = list(dict.fromkeys((row.packing, row.distribution) for row in rows))
    packings = list(dict.fromkeys(packing for packing, _ in series))
    distributions = list(dict.fromkeys(distribution for _, distribution in series))
    for packing, distribution in series:
        line = sorted((r for r in rows if (r.packing, r.distribution) == (packing, distribution)), key=lambda r: r.k)
        look: dict[str, Any] = {
            "color": f"C{distributions.index(distribution)}",
            "marker": "os^"[packings.index(packing)],
            "label": f"{packing}, {distribution}",
        }
        x, y = [r.k for r in line], [r.speedup for r in line]
        # The median lies between the quartiles, so both distances are positive.
        whiskers = [[r.speedup - r.spread[0] for r in line], [r.spread[1] - r.speedup for r in line]]
        speed.errorbar(x, y, yerr=whiskers, capsize=2, linewidth=1.2, **look)
        if packing == packings[0]:
            speed.plot(x, [r.bound for r in line], color=look["color"], linewidth=0.9, linestyle="--")
        share.plot(x, [r.share for r in line], linewidth=1.2, **look)
