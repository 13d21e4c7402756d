"""What a run leaves behind: a header that says where it ran, a JSON file, a table, a plot."""

import importlib.metadata
import io
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import sttts_jax
from sttts_jax.bench.compare import ModelRow
from sttts_jax.bench.speedup import SpeedupRow
from sttts_jax.bench.timing import GIB
from sttts_jax.paths import PathLike, write_bytes, write_json

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
WIDTH = 200  # of lines in a file or a pipe, where nothing tells: whole tables


@dataclass(frozen=True)
class BenchResult:
    """A measurement that is done: `head` says where and on what, `rows` of pruned variants, `baselines` unpruned."""

    title: str
    head: dict[str, Any]
    rows: list[SpeedupRow]
    baselines: list[SpeedupRow]

    @classmethod
    def of(
        cls, title: str, head: dict[str, Any], parts: Iterable[tuple[Sequence[SpeedupRow], Sequence[SpeedupRow]]]
    ) -> "BenchResult":
        """All rows and all baselines of several comparisons; the title tells dtype, device and rounds as well."""
        rows, baselines = zip(*parts, strict=True)
        title = f"{title}, {head['dtype']}, {head['device']}, {head['rounds']} rounds"
        return cls(title, head, [x for part in rows for x in part], [x for part in baselines for x in part])

    def write(self, json: PathLike | None, plot: PathLike | None) -> None:
        """The files that are wanted."""
        if json:
            write_rows(json, self.head, self.rows, self.baselines)
        if plot:
            write_plot(plot, self.rows, self.title)

    def show(self) -> None:
        """Prints the table."""
        show(self.title, speedup_table(self.rows, self.baselines))


def show(title: str, table: Table) -> None:
    """Prints a table of results below its title."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(f"\n{title}\n", highlight=False)
    console.print(table)


def place(command: str) -> dict[str, Any]:
    """The command and the machine."""
    device = jax.devices()[0]
    return {
        "command": command,
        "device": device.device_kind,
        "platform": device.platform,
        "host": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def versions() -> dict[str, Any]:
    """Of what ran."""
    return {
        "versions": {
            "python": platform.python_version(),
            "sttts_jax": sttts_jax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def device_peak_gib() -> float | None:
    """The most memory that this process has held on the first device so far, GiB; None where nobody counts it."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / GIB if "peak_bytes_in_use" in stats else None


def write_rows(
    path: PathLike, head: Mapping[str, Any], rows: Sequence[SpeedupRow], baselines: Sequence[SpeedupRow]
) -> None:
    """The JSON file: the header's fields, what the device held at most, `baselines`, `rows`."""
    lines = {"baselines": [row.as_json() for row in baselines], "rows": [row.as_json() for row in rows]}
    write_json(path, {**head, "device_peak_gib": device_peak_gib(), **lines})


def speedup_table(rows: Sequence[SpeedupRow], baselines: Sequence[SpeedupRow]) -> Table:
    """One line a variant, after that of the baseline that it is compared with."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    if any(isinstance(row, ModelRow) for row in baselines):
        table.caption = "frames: of a sample x samples + tokens of text of a sample; share: speed-up / bound"
        table.caption_justify = "left"
    for name in ("what", "pass", "frames", "k", "distribution", "packing"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "speed-up", "quartiles", "bound", "share", "FLOP/s", "MFU", "GiB", "compiled"):
        table.add_column(name, justify="right", no_wrap=True)
    # Two frame counts may have been compared with one unpruned model, each in its own minutes.
    for base in {_baseline_of(base): base for base in baselines}.values():
        table.add_row(*_cells(base), style="dim")
        for row in [row for row in rows if _baseline_of(row) == _baseline_of(base)]:
            table.add_row(*_cells(row))
    return table


def _baseline_of(row: SpeedupRow) -> tuple[Any, ...]:
    """What a row and its baseline have in common."""
    if isinstance(row, ModelRow):
        return row.what, row.baseline_frames, row.text
    return row.what, row.pass_, row.frames


def _panel(row: SpeedupRow) -> str:
    what = row.what if row.what == row.pass_ else f"{row.what}, {row.pass_}"
    against = row.baseline_frames if isinstance(row, ModelRow) else row.frames
    return f"{what}, frames {_held(row)}" + (f" against {against}" if against != row.frames else "")


def _held(row: SpeedupRow) -> str:
    """Frames; of a whole model "64 x 2 + 200": two samples of 64 frames and 200 tokens of text."""
    if not isinstance(row, ModelRow):
        return str(row.frames)
    return f"{row.frames} x {row.videos * row.batch} + {row.text}"


def _cells(row: SpeedupRow) -> list[str]:
    pruned = row.packing != "none"
    return [
        row.what,
        row.pass_,
        _held(row),
        f"{row.k:g}" if pruned else "",
        row.distribution if pruned else "unpruned",
        row.packing if pruned else "",
        f"{row.seconds:.4g}",
        f"{row.speedup:.2f} x" if pruned else "",
        f"{row.spread[0]:.2f} - {row.spread[1]:.2f}" if pruned else "",
        f"{row.bound:.2f} x" if pruned else "",
        f"{row.share:.2f}" if pruned else "",
        f"{row.flops_per_s:.3g}",
        f"{row.mfu:.0%}",
        f"{row.peak_gib:.3f}",
        f"{row.compilations} in {row.compile_s:.1f} s",
    ]


def write_plot(path: PathLike, rows: Sequence[SpeedupRow], title: str) -> None:
    """Speed-up with its bound, and share of the bound, by k; a line of panels for every comparison and frame count.

    The format is the suffix of `path`: png, svg or pdf.
    """
    panels = list(dict.fromkeys(map(_panel, rows)))
    figure = Figure(figsize=(11, 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (speed, share), panel in zip(axes, panels, strict=True):
        chosen = [row for row in rows if _panel(row) == panel]
        _draw(speed, share, chosen)
        speed.set_title(panel)
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


def _draw(speed: Axes, share: Axes, rows: Sequence[SpeedupRow]) -> None:
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
            bounds: dict[str, Any] = {"marker": "_", "linewidth": 0.9, "linestyle": "--"}
            speed.plot(x, [r.bound for r in line], color=look["color"], **bounds)
        share.plot(x, [r.share for r in line], linewidth=1.2, **look)
