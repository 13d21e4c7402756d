"""A video as a strip: pictures with dropped cells dimmed, score maps, captions, and the data of the player."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sttts_jax.evals.masks import pack_mask
from sttts_jax.report.images import (
    dim_dropped,
    expand,
    heat_colours,
    heat_uri,
    jpegs_within,
    png,
    resize,
)
from sttts_jax.report.views import ScoreView

# Bytes of base64 text. A page holds one strip and one set of player frames and stays below about 6 MB.
STRIP_BUDGET = 1_800_000
PLAYER_BUDGET = 3_200_000
STRIP_WIDTHS = (360, 280, 200, 144, 104)
PLAYER_WIDTHS = (720, 560, 420, 320, 240, 176)


@dataclass(frozen=True)
class Shot:
    """One frame of a strip, ready for the page."""

    index: int
    time: float
    share: float
    image: str
    heat: str | None


def score_range(view: ScoreView) -> tuple[float, float]:
    """Dark and light end of the score maps: lowest and highest score of the video."""
    if view.scores is None:
        return 0.0, 1.0
    low, high = float(view.scores.min()), float(view.scores.max())
    return (low, high) if high - low > 1e-6 else (max(low - 0.5, 0.0), min(high + 0.5, 1.0))


def shots(view: ScoreView, frames: np.ndarray | None = None, budget: int = STRIP_BUDGET) -> list[Shot]:
    """The strip of a video; `frames` (int indices) picks some of them, None takes all."""
    picked = np.arange(len(view.frames)) if frames is None else frames
    images, _ = jpegs_within(
        budget, lambda width: [dim_dropped(resize(view.frames[i], width), view.keep[i]) for i in picked], STRIP_WIDTHS
    )
    low, high = score_range(view)
    scores, shares = view.scores, view.shares
    return [
        Shot(
            int(i),
            float(view.times[i]),
            float(shares[i]),
            image,
            None if scores is None else heat_uri(scores[i], low, high),
        )
        for i, image in zip(picked, images, strict=True)
    ]


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices of `count` frames, evenly spread, first and last included: int [n]."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def player_data(view: ScoreView) -> dict[str, Any]:
    """What the script of the page needs to draw any frame: pictures, masks and score colours, as JSON types."""
    images, _ = jpegs_within(
        PLAYER_BUDGET, lambda width: [resize(frame, width) for frame in view.frames], PLAYER_WIDTHS
    )
    low, high = score_range(view)
    heat = None if view.scores is None else [heat_uri(scores, low, high) for scores in view.scores]
    return {
        "rows": view.keep.shape[1],
        "columns": view.keep.shape[2],
        "aspect": view.frames.shape[2] / view.frames.shape[1],
        "times": [round(float(time), 3) for time in view.times],
        "shares": [round(float(share), 4) for share in view.shares],
        "keep": [pack_mask(mask) for mask in view.keep],
        "images": images,
        "heat": heat,
        "start": _telling_frame(view),
    }


def _telling_frame(view: ScoreView) -> int:
    """The frame to open with: the one after the first whose kept share is nearest to the mean of the video."""
    if len(view.keep) == 1:
        return 0
    return 1 + int(np.argmin(np.abs(view.shares[1:] - view.keep.mean())))


def where_uri(view: ScoreView) -> str | None:
    """How often each place of the frame is kept after the first frame, as a map; None for videos of one frame."""
    return heat_uri(view.keep[1:].mean(axis=0), 0.0, 1.0) if len(view.keep) > 1 else None


def kept_tokens_png(view: ScoreView, frames: int = 6, width: int = 1600) -> bytes:
    """A picture for a README, as a PNG file: `frames` frames in a row, what is kept of them, and their scores."""
    picked = spread(len(view.frames), frames)
    gap, margin = 10, 24
    column = (width - 2 * margin - gap * (len(picked) - 1)) // len(picked)
    tall = max(1, round(view.frames.shape[1] * column / view.frames.shape[2]))
    rows = [[resize(view.frames[i], column) for i in picked]]
    rows.append([dim_dropped(image, view.keep[i]) for image, i in zip(rows[0], picked, strict=True)])
    if view.scores is not None:
        low, high = score_range(view)
        rows.append([expand(heat_colours(view.scores[i], low, high), tall, column) for i in picked])
    caption = 34
    sheet = Image.new("RGB", (width, 2 * margin + len(rows) * tall + (len(rows) - 1) * gap + caption), (250, 250, 248))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for j, i in enumerate(picked):
        x = margin + j * (column + gap)
        for k, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[j][:tall]), (x, margin + k * (tall + gap)))
        text = f"{view.times[i]:.1f} s   {100 * view.shares[i]:.0f} % kept"
        draw.text((x + column / 2, sheet.height - margin + 6), text, fill=(92, 98, 108), font=font, anchor="ms")
    return png(np.asarray(sheet))
