"""Deep pictures scaled to eight bits, by their whole range."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sttts_jax.data.crops import ImageError, read_image

RAMP = np.arange(65536, dtype=np.uint32).reshape(256, 256)
WANT = np.repeat(np.rint(RAMP / 257).astype(np.uint8)[..., None], 3, 2)  # 0..65535 -> 0..255


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(samples: np.ndarray, bits: int, *, sample_format: int = 1, photometric: int = 1) -> bytes:
    """A little-endian TIFF of one strip, from its tags."""
    data = samples.tobytes()
    height, width = samples.shape
    tags = [
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)),
        *((277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_samples_of_sixteen_bits() -> None:
    deep = RAMP.astype(np.uint16)
    thousand = (RAMP % 1001).astype(">u2")
    cases = {
        "png": (_file(Image.fromarray(deep), "PNG"), WANT),
        "tiff": (_file(Image.fromarray(deep), "TIFF"), WANT),
        "pgm": (b"P5 256 256 65535\n" + deep.astype(">u2").tobytes(), WANT),
        "white is zero": (_tiff(deep, 16, photometric=0), 255 - WANT),
        "pgm to 1000": (b"P5 256 256 1000\n" + thousand.tobytes(), np.rint((RAMP % 1001) * 0.255)[..., None]),
    }
    for name, (data, want) in cases.items():
        seen = read_image(data).astype(int)
        assert np.abs(seen - want).max() <= (1 if "1000" in name else 0), name


def test_twelve_and_thirty_two_bits() -> None:
    pairs = np.array([[0x12, 0x34, 0x56], [0xFF, 0xF8, 0x00]], np.uint8)  # 0x123 0x456, 0xfff 0x800
    assert read_image(_tiff_packed(pairs, width=2, bits=12))[..., 0].tolist() == [[18, 69], [255, 128]]
    wide = np.array([[0, 2**31, 2**32 - 1, 2**30]], np.uint32)
    assert read_image(_tiff(wide, 32))[..., 0].tolist() == [[0, 128, 255, 64]]


def _tiff_packed(data: np.ndarray, width: int, bits: int) -> bytes:
    file = bytearray(_tiff(data, bits))
    at = file.index(struct.pack("<HHI", 256, 4, 1)) + 8
    file[at : at + 4] = struct.pack("<I", width)
    return bytes(file)


def test_floats_from_zero_to_one() -> None:
    floats = (RAMP / 65535).astype(np.float32)
    assert np.array_equal(read_image(_file(Image.fromarray(floats), "TIFF")), WANT)


def test_deep_pictures_are_turned_and_have_a_clear_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    upright = read_image(_file(Image.fromarray(RAMP.astype(np.uint16)), "PNG", exif=exif))
    assert np.array_equal(upright, WANT[::-1, ::-1])
    turned = read_image(_file(Image.fromarray(RAMP.astype(np.uint16)), "TIFF", tiffinfo={0x0112: 3}))
    assert np.array_equal(turned, WANT[::-1, ::-1])
    clear = read_image(_file(Image.fromarray(RAMP.astype(np.uint16)), "PNG", transparency=4112))
    assert (clear[16, 16] == 255).all() and (clear[16, 17] == 16).all()


@pytest.mark.parametrize(
    "data",
    [
        _tiff(np.array([[-5, 5]], np.int16), 16, sample_format=2),
        _tiff(np.array([[-5, 5]], np.int32), 32, sample_format=2),
        _tiff(np.array([[0, 255]], np.float32), 32, sample_format=3),
        _tiff(np.array([[0, np.nan]], np.float32), 32, sample_format=3),
    ],
)
def test_unknown_ranges_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="x: cannot be shown, its samples are signed, or floats outside of 0..1; save"):
        read_image(data, "x")


def test_the_tags_are_those_of_tiff() -> None:
    names = {tag: TiffImagePlugin.TiffTags.TAGS_V2[tag].name for tag in (258, 262, 339)}
    assert names == {258: "BitsPerSample", 262: "PhotometricInterpretation", 339: "SampleFormat"}
