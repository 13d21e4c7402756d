"""Frames in, mp4 bytes out."""

import io
from fractions import Fraction

import av
import numpy as np


def encode_mp4(frames: np.ndarray, fps: float, *, crf: int = 18, codec: str = "libx264", codec_threads: int = 1) -> bytes:
    """Encodes uint8 [F, h, w, 3] frames (even h and w) at a constant rate as H.264 yuv420p in mp4.

    One codec thread by default, so that the same frames always give the same bytes.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"encode_mp4 needs uint8 frames [F, h, w, 3] with F >= 1, got {frames.dtype} {list(frames.shape)}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"yuv420p needs an even height and width, got {frames.shape[1]} x {frames.shape[2]}; pad or crop the frames")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = codec_threads
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
