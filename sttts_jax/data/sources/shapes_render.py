"""Pixels of the shapes clips: textured moving backgrounds and soft-edged shapes. Pure numpy."""

import numpy as np

COLORS = {"red": (225, 35, 35), "green": (30, 185, 50), "blue": (40, 70, 235), "yellow": (245, 220, 30)}
SHAPES = ("square", "circle", "triangle", "cross")
WHITE = (250, 250, 250)
MAGENTA = (225, 60, 215)


def background(rng: np.random.Generator, frames: int, size: int, speed: float, contrast: float) -> np.ndarray:
    """Low-frequency muted noise that drifts `speed` pixels a frame: float32 [frames, size, size, 3], about 70..170.

    The texture wraps around, so it may drift for ever.
    """
    base = rng.uniform(95, 150) + rng.uniform(-14, 14, 3)
    texture = np.zeros((size, size, 3))
    for waves, share in ((3, 0.55), (6, 0.3), (12, 0.15)):
        grain = rng.normal(size=(waves, waves, 1)) + 0.35 * rng.normal(size=(waves, waves, 3))
        texture += share * _upsample(grain, size)
    texture = (base + contrast * texture).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    drift = speed * np.arange(frames, dtype=np.float32)
    return _shift(texture, drift * np.float32(np.sin(angle)), drift * np.float32(np.cos(angle)))


def paint(video: np.ndarray, shape: str, center: tuple[float, float], px: float, color: tuple[float, ...]) -> None:
    """Draws a shape of width `px` into float32 [.., h, w, 3] in place; `center` is (y, x) and may be fractional."""
    height, width = video.shape[-3:-1]
    top, left = (max(0, int(c - px / 2) - 1) for c in center)
    bottom, right = (min(end, int(c + px / 2) + 2) for c, end in zip(center, (height, width), strict=True))
    y, x = np.mgrid[top:bottom, left:right] + np.float32(0.5)
    cover = np.clip(0.5 - _distance(shape, y - center[0], x - center[1], px / 2), 0, 1)[..., None].astype(np.float32)
    part = video[..., top:bottom, left:right, :]
    part += cover * (np.asarray(color, np.float32) - part)


def _distance(shape: str, y: np.ndarray, x: np.ndarray, r: float) -> np.ndarray:
    """Pixels outside (> 0) or inside (< 0) the outline, exact enough for soft edges."""
    if shape == "square":
        return np.maximum(abs(y), abs(x)) - 0.88 * r
    if shape == "circle":
        return np.hypot(y, x) - r
    if shape == "triangle":  # apex up
        return np.maximum(0.894 * abs(x) - 0.447 * (y + r), y - 0.9 * r)
    if shape == "cross":
        arm = 0.34 * r
        return np.minimum(np.maximum(abs(y) - arm, abs(x) - r), np.maximum(abs(x) - arm, abs(y) - r))
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def _upsample(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, wrapping around: [n, n, c] -> [size, size, c]."""
    n = len(grid)
    at = np.arange(size) * n / size
    low = at.astype(int)
    part = at - low
    part = part * part * (3 - 2 * part)  # smooth, so that the lattice does not show
    rows = grid[low] * (1 - part)[:, None, None] + grid[(low + 1) % n] * part[:, None, None]
    return rows[:, low] * (1 - part)[None, :, None] + rows[:, (low + 1) % n] * part[None, :, None]


def _shift(texture: np.ndarray, dy: np.ndarray, dx: np.ndarray) -> np.ndarray:
    """The texture moved by fractional numbers of pixels, wrapping around: [n, n, c], [t], [t] -> [t, n, n, c]."""
    n = len(texture)
    (row, fy), (column, fx) = (_taps(n, d) for d in (dy, dx))
    down = np.roll(texture, -1, 0) - texture
    out = np.empty((len(dy), n, n, texture.shape[-1]), np.float32)
    for t in range(len(dy)):  # one frame at a time stays in the cache
        rows = texture + fy[t] * down
        mixed = rows + fx[t] * (np.roll(rows, -1, 1) - rows)
        out[t] = np.roll(mixed, (-row[t], -column[t]), (0, 1))
    return out


def _taps(n: int, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel i of the moved texture lies the share `part` after pixel (i + whole) of the still one."""
    at = -shift
    whole = np.floor(at).astype(int)
    return whole % n, at - whole
