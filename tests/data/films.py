"""Films whose frames say their number, in any container."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

BARS = 8


def numbered(count: int, first: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [count, height, width, 3]: frames that say their number in black or white bars, below a red band."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    bar = width // BARS
    for number in range(count):
        for bit in range(BARS):
            frames[number, :, bit * bar : bit * bar + bar] = 255 * (first + number >> bit & 1)
    frames[:, : height // 3] = (200, 30, 30)
    return frames


def read_number(frame: np.ndarray) -> int:
    """The number of such a frame, of any size and with its band or without."""
    middle, bar = frame[frame.shape[0] * 2 // 3], frame.shape[1] / BARS
    return sum(
        int(middle[int(bar * (bit + 0.3)) : int(bar * (bit + 0.7)) + 1].mean() > 128) << bit for bit in range(BARS)
    )


def film(
    frames: np.ndarray,
    container: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 10,
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    clock: int = 1000,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> bytes:
    """A file of `frames` uint8 [F, h, w, 3], `rate` a second, or shown at pts / clock seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.gop_size = gop
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, clock)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, clock)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()
