"""Frames in, mp4 bytes out."""

import io
from fractions import Fraction

import av
import numpy as np

# Without cpu-independent x264's look-ahead depends on the CPU and, at widths that 16 does not divide, on whatever the
# memory behind a line holds: the same frames then give other bytes now and then.
OPTIONS = {"preset": "veryfast", "x264-params": "cpu-independent=1", "crf": "18"}


def encode_mp4(frames: np.ndarray, fps: float) -> bytes:
    """Encodes uint8 [F, h, w, 3] frames (even h and w) at a constant rate as H.264 yuv420p in mp4.

    The same frames always give the same bytes.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"encode_mp4 needs uint8 frames [F, h, w, 3] with F >= 1, got {frames.dtype} {list(frames.shape)}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"yuv420p needs an even height and width, got {height} x {width}; pad or crop the frames")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
