"""Charts as inline SVG. Colours are CSS classes of the page (`s-scorer`, `grid`, ...), so light and dark work."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from markupsafe import Markup

from sttts_jax.evals.prose import number, percent

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 38
MAX_POINTS = 240

Format = Callable[[float], str]
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """One series: x and y of equal length; `low` and `high` draw whiskers; `css` names its colour class."""

    name: str
    css: str
    x: Values
    y: Values
    low: Values = ()
    high: Values = ()


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart say: labels, how numbers are written, a fixed y range, dashed reference levels."""

    x_label: str
    y_format: Format = number
    x_format: Format = "{:,.0f}".format
    y_range: tuple[float, float] | None = None
    references: Sequence[tuple[float, str]] = field(default_factory=tuple)
    smooth: bool = False
    from_zero: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points, each the mean of a run of neighbours, so that a spike shows instead of vanishing."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def smoothed(y: np.ndarray) -> np.ndarray:
    """Centred moving mean over a tenth of the points; the ends use what they have."""
    half = max(1, len(y) // 20)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def line_chart(lines: Sequence[Line], axes: Axes, label: str) -> Markup:
    """Lines over a common x. Values that are not finite are left out. `label` is read out by screen readers."""
    series = [_finite(line) for line in lines]
    x_all = np.concatenate([x for _, x, _ in series] or [np.zeros(1)])
    y_all = np.concatenate([y for _, _, y in series] + [np.asarray([v for v, _ in axes.references])] or [np.zeros(1)])
    bands = [v for line in lines for v in (*line.low, *line.high) if math.isfinite(v)]
    y_values = np.concatenate([y_all, np.asarray(bands)])
    if not len(x_all) or not len(y_values):
        return Markup("")
    lowest = min(0.0, y_values.min()) if axes.from_zero else y_values.min()
    y_ticks = ticks(*(axes.y_range or (lowest, y_values.max())))
    sx = _scale(x_all.min(), x_all.max(), LEFT, WIDTH - RIGHT)
    sy = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = _frame(sy, y_ticks, axes)
    parts += _x_labels(sx, x_all, axes)
    for line, x, y in series:
        parts += _series(line, *thin(x, y), sx, sy, axes)
    return _svg(parts, HEIGHT, label)


def bars(
    groups: Sequence[str],
    series: Sequence[tuple[str, str, Sequence[tuple[float, float, float] | None]]],
    references: Sequence[tuple[float, str]],
    label: str,
) -> Markup:
    """Horizontal bars from 0 to 1, one row a series within a group: (name, css, [(value, low, high) or None, ...])."""
    bar, gap, space = 9, 3, 14
    inner = len(series) * (bar + gap) - gap
    left = 16 + round(6.6 * max((len(group) for group in groups), default=0))
    height = TOP + len(groups) * (inner + space) + 26
    sx = _scale(0, 1, left, WIDTH - RIGHT - 6)
    bottom = height - 26
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{sx(tick):.1f}" x2="{sx(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(sx(tick), bottom + 16, f"{100 * tick:.0f} %", "middle"))
    for value, name in references:
        parts.append(f'<line class="reference" x1="{sx(value):.1f}" x2="{sx(value):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(_text(sx(value) + 4, TOP + 2, name, "start", "note"))
    for i, group in enumerate(groups):
        top = TOP + space / 2 + i * (inner + space)
        parts.append(_text(left - 10, top + inner / 2 + 4, group, "end", "name"))
        for j, (name, css, values) in enumerate(series):
            parts += _bar(f"{group}, {name}", css, values[i], sx, top + j * (bar + gap), bar)
    return _svg(parts, height, label)


def histogram(edges: Values, parts: Sequence[tuple[str, str, Values]], axes: Axes, label: str) -> Markup:
    """Stacked counts between `edges` (one more than counts): [(name, css, counts), ...], the first at the bottom."""
    height = 200
    total = np.sum([np.asarray(counts) for _, _, counts in parts], axis=0)
    sx = _scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    sy = _scale(0, max(float(np.max(total)), 1e-12), height - BOTTOM, TOP)
    out = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{sy(0):.1f}" y2="{sy(0):.1f}"/>']
    base = np.zeros(len(total))
    for name, css, counts in parts:
        out += _stacked(name, css, edges, counts, base, sx, sy)
        base = base + np.asarray(counts)
    for value, text in axes.references:
        side = "end" if sx(value) > WIDTH * 0.6 else "start"
        out.append(f'<line class="reference" x1="{sx(value):.1f}" x2="{sx(value):.1f}" y1="{TOP}" y2="{sy(0):.1f}"/>')
        out.append(_text(sx(value) + (5 if side == "start" else -5), TOP + 8, text, side, "note"))
    out += _x_labels(sx, np.asarray(edges), axes, height)
    return _svg(out, height, label)


def _stacked(name: str, css: str, edges: Values, counts: Values, base: Values, sx: Callable, sy: Callable) -> list[str]:
    """A bar for each count above 0, standing on `base`."""
    out = []
    for low, high, count, under in zip(edges[:-1], edges[1:], counts, base, strict=True):
        if count > 0:
            x, width = sx(low), sx(high) - sx(low)
            y, tall = sy(under + count), sy(under) - sy(under + count)
            title = f"{name}: {count:,.0f} from {low:.3g} to {high:.3g}"
            out.append(
                f'<rect class="fill {css}" x="{x + 0.5:.2f}" y="{y:.2f}" width="{max(width - 1, 0.5):.2f}" '
                f'height="{tall:.2f}"><title>{escape(title)}</title></rect>'
            )
    return out


def _finite(line: Line) -> tuple[Line, np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    return line, x[good], y[good]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _frame(sy: Callable[[float], float], y_ticks: list[float], axes: Axes) -> list[str]:
    parts = []
    for tick in y_ticks:
        css = "axis" if tick == y_ticks[0] else "grid"
        parts.append(f'<line class="{css}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{sy(tick):.1f}" y2="{sy(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, sy(tick) + 4, axes.y_format(tick), "end"))
    for value, name in axes.references:
        parts.append(
            f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{sy(value):.1f}" y2="{sy(value):.1f}"/>'
        )
        parts.append(_text(WIDTH - RIGHT, sy(value) - 5, name, "end", "note"))
    return parts


def _x_labels(sx: Callable[[float], float], x: np.ndarray, axes: Axes, height: int = HEIGHT) -> list[str]:
    distinct = sorted(set(x.tolist()))
    low, high = distinct[0], distinct[-1]
    values = distinct if len(distinct) <= 6 else [tick for tick in ticks(low, high) if low <= tick <= high]
    parts = [_text(sx(value), height - BOTTOM + 16, axes.x_format(value), "middle") for value in values]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, height - 5, axes.x_label, "middle", "label")]


def _series(line: Line, x: np.ndarray, y: np.ndarray, sx: Callable, sy: Callable, axes: Axes) -> list[str]:
    def path(values: np.ndarray) -> str:
        return "M" + "L".join(f"{sx(a):.1f},{sy(b):.1f}" for a, b in zip(x, values, strict=True))

    if not len(x):
        return []
    parts = []
    if axes.smooth and len(x) > 20:
        parts += [
            f'<path class="raw {line.css}" d="{path(y)}"/>',
            f'<path class="line {line.css}" d="{path(smoothed(y))}"/>',
        ]
    else:
        parts.append(f'<path class="line {line.css}" d="{path(y)}"/>')
    for low, high, at in zip(line.low, line.high, line.x, strict=False):
        parts.append(f'<path class="whisker {line.css}" d="M{sx(at):.1f},{sy(low):.1f}V{sy(high):.1f}"/>')
    if len(x) <= 20:
        for a, b in zip(x, y, strict=True):
            title = escape(f"{line.name}: {axes.y_format(b)} at {axes.x_format(a)}")
            place = f'cx="{sx(a):.1f}" cy="{sy(b):.1f}" r="3.6"'
            parts.append(f'<circle class="dot {line.css}" {place}><title>{title}</title></circle>')
    return parts


def _bar(
    name: str, css: str, value: tuple[float, float, float] | None, sx: Callable, y: float, tall: float
) -> list[str]:
    if value is None:
        return [_text(sx(0) + 4, y + tall - 1, "not measured", "start", "note")]
    mean, low, high = value
    title = escape(f"{name}: {percent(mean)} ({percent(low)} to {percent(high)})")
    middle = y + tall / 2
    return [
        f'<rect class="fill {css}" x="{sx(0):.1f}" y="{y:.1f}" width="{max(sx(mean) - sx(0), 1):.1f}" height="{tall}" '
        f'rx="1.5"><title>{title}</title></rect>',
        f'<path class="interval" d="M{sx(low):.1f},{middle:.1f}H{sx(high):.1f}M{sx(low):.1f},{middle - 2.5:.1f}v5'
        f'M{sx(high):.1f},{middle - 2.5:.1f}v5"/>',
    ]


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, label: str) -> Markup:
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(opening + "".join(parts) + "</svg>")
