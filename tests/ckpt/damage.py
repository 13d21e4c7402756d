"""Damage to the arrays of a step on disk."""

from pathlib import Path


def data_file(step: Path, part: str = "params") -> Path:
    """Where most chunks of a part lie."""
    return max((step / part).rglob("d/*"), key=lambda file: file.stat().st_size)


def flip_a_bit(step: Path, part: str = "params") -> Path:
    """The file in the middle of which one bit is another now."""
    file = data_file(step, part)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def zero_bytes(step: Path, part: str = "params") -> Path:
    """The file in the middle of which 16 bytes are zero now."""
    file = data_file(step, part)
    data = bytearray(file.read_bytes())
    place = len(data) // 2
    data[place : place + 16] = bytes(16)
    file.write_bytes(data)
    return file
