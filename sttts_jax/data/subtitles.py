"""Subtitle files to lines with times: SubRip (.srt) and WebVTT (.vtt).

    lines = read_subtitles("talk.srt")                       # ((1.0, 2.5, "Hello."), ..), by start
    lines = cut_subtitles(lines, start=60, end=90)           # of that clip, in seconds from its start

Written for the files that exist, not for the standards: a byte order mark, CRLF, hours left out, comma or dot before
the milliseconds, cue numbers and settings, styles and notes, tags, cues out of order or on top of each other. No words
are lost: what stands behind an empty line without times of its own belongs to the cue before, as players show it; what
stands before the first times is named in a warning.
"""

import html
import html.entities
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence

from sttts_jax.data.files import open_file
from sttts_jax.data.record import Line, RecordError
from sttts_jax.paths import PathLike

SUFFIXES = (".srt", ".vtt")
WEB = "WEBVTT"  # what a .vtt file begins with

LOG = logging.getLogger("sttts_jax.data")
_TIME = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,6}))?"
_ARROW = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_LIKE_ARROW = re.compile(rf"\s*(?:[-\d].*-->|{_TIME}\s*[-=–—]+>\s*{_TIME}\s*$)")
_COMMENT = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s|$)")  # what a block of WebVTT that is no cue begins with
# Tags of both formats; anything else in angle brackets is text.
_TAG = re.compile(
    r"</?(?:b|i|u|s|c|br|ruby|rt)(?:\.[^\s<>]*)?\s*/?>|</?(?:v|lang|font|span)(?:[\s./][^<>]*)?>|<\d[\d:.]*>",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")  # {\an8}: a place on the screen, which SubRip took from another format
_ENTITY = re.compile(r"&(?:#\d{1,9}|#x[\da-fA-F]{1,9}|[a-zA-Z]+);")


def read_subtitles(path: PathLike) -> tuple[Line, ...]:
    """The cues of a file, by start; the lines of a cue joined with blanks, tags and cues without text left out.

    Raises RecordError, one sentence with the file (and the line), for a missing file, another format or encoding than
    UTF-8, times that cannot be read, a cue that ends before it starts, and a file without cues.
    """
    file = os.fspath(path)
    suffix = os.path.splitext(file)[1].lower()
    if suffix not in SUFFIXES:
        raise RecordError(f"{file}: subtitles must be in a file that ends in {' or '.join(SUFFIXES)}")
    with open_file(file, file, RecordError) as opened:
        data = opened.read()
    text = _text(data, file)
    web = suffix == ".vtt" or text.startswith(WEB)
    lines = sorted(_cues(text, file, web), key=lambda line: line[:2])
    if not lines:
        raise RecordError(f"{file}: holds no subtitles with times (lines such as 00:00:01,000 --> 00:00:02,500)")
    return tuple(lines)


def _text(data: bytes, name: str) -> str:
    encoding = json.detect_encoding(data[:4])  # by a byte order mark, or by where its zeros are
    if not encoding.startswith("utf-8"):
        raise RecordError(
            f"{name}: is {encoding.upper()} and not UTF-8; convert it, as with iconv -f {encoding} -t utf-8"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{name}: is not UTF-8 (byte {error.start}); convert it, as with iconv -f latin1 -t utf-8"
        ) from None


def cut_subtitles(lines: Sequence[Line], start: float | None = None, end: float | None = None) -> tuple[Line, ...]:
    """The lines that are on screen in the clip [start, end), cut to it, in seconds from its start."""
    begin, finish = start or 0.0, float("inf") if end is None else end
    inside = [line for line in lines if line[0] < finish and (line[1] > begin or line[0] >= begin)]
    return tuple((max(a, begin) - begin, min(b, finish) - begin, text) for a, b, text in inside)


def _cues(text: str, where: str, web: bool) -> Iterator[Line]:
    # Not splitlines: it also splits at characters that may stand inside of a text, such as form feeds.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    starts = [number for number, line in enumerate(lines) if _is_timing(line, where, number)]
    _warn_of_untimed(lines[: starts[0]] if starts else [], where, web)
    for first, following in itertools.pairwise([*starts, len(lines)]):
        match = _ARROW.fullmatch(lines[first])
        assert match is not None
        begin, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if end < begin:
            raise RecordError(f"{where}: line {first + 1}: the subtitle ends before it starts; correct its times")
        spoken = _clean(_body(lines[first + 1 : following], following < len(lines), web))
        if spoken:
            yield begin, end, spoken


def _is_timing(line: str, where: str, number: int) -> bool:
    if _ARROW.fullmatch(line):
        return True
    if _LIKE_ARROW.match(line):
        raise RecordError(
            f"{where}: line {number + 1}: the times {line.strip()[:60]!r} cannot be read; write 00:00:01,000 --> "
            "00:00:02,500"
        )
    return False


def _body(lines: Sequence[str], more: bool, web: bool) -> list[str]:
    """What is said until the next times, less the number or name of the cue that follows if there are `more`, and less
    comments. Only a line with nothing in it ends a block: YouTube's cues begin with a line of one blank.
    """
    said = list(lines)
    if more and said and (said[-1].strip().isdigit() or (web and _is_name(said))):
        said.pop()
    cue = list(itertools.takewhile(bool, said))
    return cue + [
        line for block in _blocks(said[len(cue) :]) if not (web and _COMMENT.match(block[0])) for line in block
    ]


def _is_name(lines: Sequence[str]) -> bool:
    """Whether the last line, with times behind it, stands alone."""
    return bool(lines[-1].strip()) and (len(lines) > 1 and not lines[-2])


def _blocks(lines: Sequence[str]) -> list[list[str]]:
    """Lines that empty ones divide."""
    return [list(block) for filled, block in itertools.groupby(lines, bool) if filled]


def _warn_of_untimed(lines: Sequence[str], where: str, web: bool) -> None:
    """Names words that belong to no cue, in the lines before the first times: neither a header nor a comment, nor the
    number or name of the first cue.
    """
    blocks = _blocks(lines[:-1] if lines and lines[-1] else lines)
    words = [block for block in blocks if not (web and (_COMMENT.match(block[0]) or block[0].startswith(WEB)))]
    text = _clean([line for block in words for line in block])
    if text:
        LOG.warning("%s: %r stands before the first times and is left out", where, text[:60])


def _clean(lines: Sequence[str]) -> str:
    text = _OVERRIDE.sub("", _TAG.sub("", " ".join(lines)))
    return " ".join(_ENTITY.sub(_character, text).split())


def _character(match: re.Match[str]) -> str:
    """Of &amp; or &#38;; a name that is none stays, where html.unescape would take the start of it for one."""
    known = match.group().startswith("&#") or match.group()[1:] in html.entities.html5
    return html.unescape(match.group()) if known else match.group()


def _seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = groups
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction or 0}")
