"""Small files that declare huge pictures, or very many, are refused before memory is taken or time is spent."""

import io
import struct
import subprocess
import sys
import time

import av
import pytest
from PIL import Image

from sttts_jax.data import crops, video
from sttts_jax.data.config import data_config
from sttts_jax.data.crops import ImageError, read_image
from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode
from tests.data.films import film, numbered

FEW = FrameSampling(4)


def gif(width: int, height: int, count: int) -> bytes:
    """A GIF of `count` pictures of one pixel on a canvas of any size."""
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    shown = b"\x21\xf9\x04\x04" + struct.pack("<HH", 10, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + (shown + pixel) * count + b"\x3b"


def test_pixels_of_a_frame() -> None:
    with pytest.raises(VideoError, match="^x: its frames have 16000 x 16000 pixels, more than 89,478,485; shrink it"):
        decode(gif(16000, 16000, 300), FEW, size=(8, 8), name="x")
    limits = DecodeLimits(max_pixels=48 * 64)
    for container, codec in (("mp4", "libx264"), ("matroska", "mpeg4"), ("mpegts", "libx264"), ("avi", "mpeg4")):
        data = film(numbered(10), container, codec)
        assert len(decode(data, FEW, size=(8, 8), limits=limits).frames) == 4
        with pytest.raises(VideoError, match="have 64 x 48 pixels, more than 3,071; .* raise data.max_pixels"):
            decode(data, FEW, size=(8, 8), limits=DecodeLimits(max_pixels=48 * 64 - 1))
    with pytest.raises(ImageError, match="^<.*: holds more than 89,478,485 pixels, or than Pillow opens; shrink it$"):
        read_image(gif(16000, 16000, 1))


def test_pictures_that_are_larger_than_the_header_says() -> None:
    """The header of the container promises 64 x 48 pixels, the JPEGs in it have many more."""
    small, large = _jpeg(64, 48), _jpeg(6400, 4800)
    pair = film(numbered(3), "avi", "mjpeg", pix_fmt="yuvj420p", gop=1)
    data = _with_frames(pair, [small, large, large])
    limits = DecodeLimits(max_pixels=1_000_000)
    with pytest.raises(VideoError, match="a frame has more than 1,000,000 pixels .data.max_pixels., or the file is"):
        decode(data, FEW, size=(8, 8), limits=limits)
    with pytest.raises(VideoError, match="its frames have 6400 x 4800 pixels, more than 20,000,000"):
        decode(data, FEW, size=(8, 8), limits=DecodeLimits(max_pixels=20_000_000))
    assert decode(data, FEW, size=(8, 8)).frames.shape == (4, 8, 8, 3)


def _jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", quality=5)
    return file.getvalue()


def _with_frames(avi: bytes, pictures: list[bytes]) -> bytes:
    """An AVI with other data in its chunks; players read it without its index."""
    chunks = b"".join(b"00dc" + struct.pack("<I", len(p)) + p + b"\0" * (len(p) % 2) for p in pictures)
    movi = avi.index(b"movi")
    head = bytearray(avi[: movi + 4])
    head[movi - 4 : movi] = struct.pack("<I", 4 + len(chunks))
    head[4:8] = struct.pack("<I", len(head) + len(chunks) - 8)
    return bytes(head) + chunks


def test_pixels_to_decode() -> None:
    """As many as lie between the key frames and the frames looked at, known before any is decoded."""
    picture = 48 * 64
    data = film(numbered(100), gop=10, options={"sc_threshold": "0", "bf": "0"})
    needed = {1: 1, 2: 1 + 10, 4: 1 + 4 + 7 + 10}  # frames 0; 0, 99; 0, 33, 66, 99
    for frames, pictures in needed.items():
        sampling = FrameSampling(frames)
        decode(data, sampling, size=(8, 8), limits=DecodeLimits(max_decoded_pixels=picture * pictures))
        with pytest.raises(VideoError, match="would have to be decoded, more than .*raise data.max_decoded_pixels"):
            decode(data, sampling, size=(8, 8), limits=DecodeLimits(max_decoded_pixels=picture * pictures - 1))
    counted = film(numbered(30), "avi", "mpeg4")  # without display times all are decoded
    decode(counted, FEW, size=(8, 8), limits=DecodeLimits(max_decoded_pixels=picture * 30))
    with pytest.raises(VideoError, match="at least 92,160 pixels"):
        decode(counted, FEW, size=(8, 8), limits=DecodeLimits(max_decoded_pixels=picture * 30 - 1))
    started = time.perf_counter()
    with pytest.raises(VideoError, match="at least 546,507,000,000 pixels"):  # a day of it on one core
        decode(gif(9000, 9000, 6747), FrameSampling(2), size=(8, 8))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("problem", [MemoryError(), av.error.MemoryError(12, "Cannot allocate memory")])
def test_running_out_of_memory_is_called_so(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise problem

    sentence = "^x: asks for more memory than there is; shrink it, or free some memory$"
    monkeypatch.setattr(video.video_stream, "fetch", fail)
    with pytest.raises(VideoError, match=sentence):
        decode(film(numbered(3)), FEW, size=None, name="x")
    monkeypatch.setattr(crops, "to_rgb", fail)
    with pytest.raises(ImageError, match=sentence):
        read_image(_jpeg(8, 8), "x")


MEMORY = """
import resource, sys
from sttts_jax.data.crops import read_image
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode
from tests.data.decode_limits_test import gif

def tried(data):
    try:
        decode(data, FrameSampling(2), size=(8, 8), name="x")
    except VideoError as error:
        print(error)

tried(gif(8, 8, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tried(gif(16000, 16000, 300))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "KiB")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, -1))
tried(gif(9000, 9000, 3))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_memory_of_the_process() -> None:
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "more than 89,478,485" in out[0] and int(out[1].split()[0]) < 20_000
    assert out[2] == "x: asks for more memory than there is; shrink it, or free some memory"


def test_the_config_has_the_limits() -> None:
    config = data_config(sources=(("a", 1.0, "train"),), max_pixels=10, max_decoded_pixels=20)
    assert config.limits == DecodeLimits(10, 20)
    for name in ("max_pixels", "max_decoded_pixels"):
        with pytest.raises(ValueError, match=f"data.{name}=0 must be a whole number from 1 up"):
            data_config(sources=(("a", 1.0, "train"),), **{name: 0})
    with pytest.raises(ValueError, match="must be positive"):
        DecodeLimits(0, 1)
