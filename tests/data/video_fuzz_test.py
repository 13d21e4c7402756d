"""Damaged videos of many containers: frames of the right shape, or one sentence; never anything else, and soon."""

import time

import numpy as np
import pytest

from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.video import VideoError, decode
from tests.data.films import film, numbered

TRIES = 40  # of each container
SLOW = 5.0  # seconds that no file of a few kilobytes may take
LIMITS = DecodeLimits(max_pixels=1_000_000, max_decoded_pixels=100_000_000)
CONTAINERS = {
    "mp4": ("mp4", "libx264", "yuv420p", {}),
    "fragmented mp4": ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "matroska": ("matroska", "libx264", "yuv420p", {}),
    "webm": ("webm", "libvpx", "yuv420p", {}),
    "avi": ("avi", "mpeg4", "yuv420p", {}),
    "mpegts": ("mpegts", "libx264", "yuv420p", {}),
    "flv": ("flv", "flv", "yuv420p", {}),
    "asf": ("asf", "wmv2", "yuv420p", {}),
    "nut": ("nut", "mpeg4", "yuv420p", {}),
    "gif": ("gif", "gif", "rgb8", {}),
    "apng": ("apng", "apng", "rgb24", {}),
    "ivf": ("ivf", "libvpx", "yuv420p", {}),
}


def _flipped(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(0, len(data), 1 + len(data) // 200):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(1, len(data)))]


def _blanked(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    data[start : start + length] = bytes(len(data[start : start + length]))
    return data


def _shifted(data: bytearray, rng: np.random.Generator) -> bytearray:
    place = int(rng.integers(len(data)))
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))
    return data


def _extreme(data: bytearray, rng: np.random.Generator) -> bytearray:
    """One number of the file becomes none, or huge."""
    place = int(rng.integers(len(data) - 4))
    data[place : place + 4] = int(rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x10000000, 0x00FFFFFF])).to_bytes(4)
    return data


def _doubled(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, end = sorted(rng.integers(0, len(data), 2))
    return data[:end] + data[start:]


CHANGES = (_flipped, _cut, _blanked, _shifted, _extreme, _doubled)


@pytest.mark.parametrize("name", CONTAINERS)
def test_damaged_files(name: str) -> None:
    container, codec, pix_fmt, muxer = CONTAINERS[name]
    whole = film(numbered(24), container, codec, pix_fmt=pix_fmt, muxer=muxer)
    for seed in range(TRIES):
        rng = np.random.default_rng([list(CONTAINERS).index(name), seed])
        data = bytes(CHANGES[seed % len(CHANGES)](bytearray(whole), rng))
        started = time.perf_counter()
        try:
            video = decode(data, FrameSampling(6, 4), size=(16, 16), name="x", limits=LIMITS)
        except VideoError as error:
            assert str(error).startswith("x: ") and "\n" not in str(error) and len(str(error)) < 300, seed
        else:
            assert video.frames.shape == (len(video.times), 16, 16, 3), seed
            assert np.isfinite(video.times).all() and video.times[0] >= 0 and (np.diff(video.times) > 0).all(), seed
        assert time.perf_counter() - started < SLOW, seed
