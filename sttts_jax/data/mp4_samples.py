"""How many samples an mp4 or mov file declares: FFmpeg takes memory for each, before it finds that they are not there.

A few bytes can declare billions, where samples are said to have one size or to follow from defaults.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
# Where in the body of a box its number of samples stands: after version, flags and, in tables, a size.
COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}
FIRST = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"sidx", b"uuid"}
DEPTH = 8  # of boxes in boxes


def declares_too_many(file: BinaryIO) -> bool:
    """Whether the boxes of an mp4 declare more samples than the file has bytes. False for other files."""
    size = file.seek(0, os.SEEK_END)
    first = next(_boxes(file, 0, size), None)
    return first is not None and first[0] in FIRST and _samples(file, 0, size, DEPTH) > size


def _samples(file: BinaryIO, start: int, end: int, depth: int) -> int:
    total = 0
    for kind, body, stop in _boxes(file, start, end):
        if kind in COUNTS:
            total += _number(file, body + COUNTS[kind])
        elif kind in NESTED and depth and not (kind == b"trak" and _counts_in_chunks(file, body, stop)):
            total += _samples(file, body, stop, depth - 1)
    return total


def _counts_in_chunks(file: BinaryIO, start: int, end: int) -> bool:
    """Whether a track is sound as QuickTime has it: it counts waves, of which many are coded in a byte, and FFmpeg
    takes memory for chunks.
    """
    found = dict(_leaves(file, start, end, DEPTH))
    if not {b"hdlr", b"stts"} <= set(found):
        return False
    file.seek(found[b"hdlr"] + 8)
    sound, table = file.read(4) == b"soun", found[b"stts"]
    return sound and _number(file, table + 4) == 1 and _number(file, table + 12) == 1  # one entry: each lasts one tick


def _leaves(file: BinaryIO, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int]]:
    for kind, body, stop in _boxes(file, start, end):
        if kind not in NESTED:
            yield kind, body
        elif depth:
            yield from _leaves(file, body, stop, depth - 1)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its body starts, where it ends) of the boxes that follow each other from `start` to `end`."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, kind, body = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:
            size, body = int.from_bytes(header[8:]), start + 16
        stop = min(start + size, end) if size else end
        if stop < body:
            return
        yield kind, body, stop
        start = stop


def _number(file: BinaryIO, place: int) -> int:
    file.seek(place)
    return int.from_bytes(file.read(4))
