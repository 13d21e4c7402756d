"""A record: one video (or none), images (or none) and what is asked about it. Every source yields these.

This is the one schema of a record: whatever its source, a `Record` or `Message` that exists is right in every field.
What is of another kind is refused and never converted, but for lists, which become tuples.
"""

import contextlib
import math
import numbers
import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from sttts_jax.data.styles import scores_options, shows_options, style_problem

MOST_SECONDS = 1e9  # of any time
MOST_WEIGHT = 1e6  # far from where a sum of float32 losses overflows
# Endings of files that hold subtitles, or could be thought to.
SUBTITLE_FILES = (".srt", ".vtt", ".ass", ".ssa", ".sub", ".sbv", ".ttml", ".dfxp", ".lrc", ".txt", ".json", ".xml")

Line = tuple[float, float, str]  # of subtitles: start and end in seconds, text
Subtitles = str | tuple[Line, ...]


class RecordError(ValueError):
    """A record, or a file that it names, that cannot be used: one sentence, its name first. Training counts, names and
    skips it.
    """


@dataclass(frozen=True)
class Message:
    """One conversation about the video: a branch of the message tree (Molmo2).

    With `options` and a multiple-choice style the prompt lists the options and the target is "B. text"; with a style of
    short answers they are the answers that can be right, for scoring only; other styles have none. `weight` replaces
    the 2/sqrt(n) weighting by a constant, as Molmo2 does for captions (0.1) and pointing (0.2). The answer is "" where
    the model is to find it.

    Raises RecordError, one sentence that names the field.
    """

    question: str
    answer: str
    style: str
    options: tuple[str, ...] = ()
    family: str = ""
    follow_ups: tuple[tuple[str, str], ...] = ()  # further turns: (user, assistant)
    weight: float | None = None

    def __post_init__(self) -> None:
        _check_words("question", self.question)
        check_text("answer", self.answer)
        check_text("style", self.style)
        check_text("family", self.family)
        problem = style_problem(self.style)
        if problem:
            raise RecordError(problem)
        object.__setattr__(self, "options", _sequence("options", self.options, "texts"))
        object.__setattr__(self, "follow_ups", tuple(map(_turn, _sequence("follow_ups", self.follow_ups, "turns"))))
        self._check_options()
        if self.weight is not None:
            object.__setattr__(self, "weight", _weight(self.weight))

    def _check_options(self) -> None:
        for option in self.options:
            _check_words("options", option)
        if shows_options(self.style) and len(self.options) > len(ascii_uppercase):
            raise RecordError(f"`options` are {len(self.options)}, and letters are {len(ascii_uppercase)}; give fewer")
        if self.options and not shows_options(self.style) and not scores_options(self.style):
            raise RecordError(
                f"`options` are not shown with the style {self.style!r}; take 'video_multiple_choice' or leave them out"
            )


@dataclass(frozen=True)
class Record:
    """A video (or none), images (or none) and what is asked. Without either the record is text alone.

    video         a path, the bytes of a file, or None
    start, end    cut a clip out of the video, seconds
    subtitles     lines (start, end, text) in seconds within the clip; or plain text
    images        paths or bytes; they come before the video
    place         where it was read, such as "my/train.jsonl:3": what messages call it; else `id` does

    Raises RecordError, one sentence with that name and the field.
    """

    id: str
    video: str | bytes | None
    messages: tuple[Message, ...]
    start: float | None = None
    end: float | None = None
    subtitles: Subtitles = ()
    images: tuple[str | bytes, ...] = ()
    place: str = ""

    def __post_init__(self) -> None:
        with naming(self.name):
            check_text("id", self.id)
            if self.video is not None:
                _check_file("video", self.video, "a path")
            object.__setattr__(self, "images", _sequence("images", self.images, "paths"))
            for image in self.images:
                _check_file("images", image, "a list of paths")
            self._check_messages()
            self._check_clip()
            object.__setattr__(self, "subtitles", check_subtitles(self.subtitles))
            if self.video is None and self.subtitles and not isinstance(self.subtitles, str):
                raise RecordError("`subtitles` with times are of a video, and there is none; give `video`, or one text")

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place or (self.id if isinstance(self.id, str) else "record")

    def _check_messages(self) -> None:
        messages = _sequence("messages", self.messages, "questions")
        object.__setattr__(self, "messages", messages)
        if not messages:
            raise RecordError("`messages` is empty; ask at least one question")
        for message in messages:
            if not isinstance(message, Message):
                raise RecordError(f"`messages` must hold questions, got {reprlib.repr(message)}")
            _check_words("answer", message.answer)

    def _check_clip(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _seconds(name, value))
        if self.video is None and (self.start is not None or self.end is not None):
            raise RecordError("`start` and `end` cut a video, and there is none; leave them out")
        begin = self.start or 0.0
        if begin < 0 or (self.end is not None and self.end <= begin):
            finish = "the end" if self.end is None else f"{self.end:g} s"
            raise RecordError(f"the clip from {begin:g} s to {finish} is empty or negative; correct `start` and `end`")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """What is raised of a record inside begins with its name."""
    try:
        yield
    except RecordError as error:
        if str(error).startswith((f"{name}: ", f"{name}, ")):
            raise
        raise type(error)(f"{name}: {error}") from error


def join_names(names: Iterable[str]) -> str:
    """Names of records in one line, those of a file together: "a.jsonl:1, 5; b.jsonl:2". Each once, in order."""
    files: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        match = re.fullmatch(r"(.*\D)(\d+)", name, re.DOTALL)
        where, number = match.groups() if match else (name, "")
        files.setdefault(where, []).append(number)
    return "; ".join(where + ", ".join(numbers) for where, numbers in files.items())


def check_text(name: str, value: Any) -> None:
    """Raises RecordError with the field's name unless `value` is text that UTF-8 can write."""
    if not isinstance(value, str):
        raise RecordError(f"`{name}` must be a text, got {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        near = value[max(error.start - 20, 0) : error.start + 1]
        raise RecordError(
            f"`{name}` holds what is no character, at the end of {ascii(near)}; write the text in UTF-8"
        ) from None


def check_subtitles(value: Any) -> Subtitles:
    """Subtitles as a record holds them. Raises RecordError for other kinds, and for the name of a file."""
    if isinstance(value, str):
        check_text("subtitles", value)
        if names_subtitle_file(value):
            raise RecordError(
                f"`subtitles` {value[-60:]!r} is the name of a file, not what is said; give the lines that "
                "data.subtitles.read_subtitles makes of a .srt or .vtt file"
            )
        return value
    return check_lines(value)


def check_lines(value: Any) -> tuple[Line, ...]:
    """Subtitles with times. Raises RecordError for other kinds."""
    return tuple(map(_line, _sequence("subtitles", value, "[start, end, text], or one text")))


def names_subtitle_file(text: str) -> bool:
    """Whether a text is the name of a file and no speech: the endings of subtitle files, in a text of one line."""
    return text.lower().endswith(SUBTITLE_FILES) and "\n" not in text


def _line(value: Any) -> Line:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise RecordError(f"`subtitles` must be a text or a list of [start, end, text], got {reprlib.repr(value)}")
    start, end = (_seconds("subtitles", time) for time in value[:2])
    check_text("subtitles", value[2])
    if end < start:
        raise RecordError(f"`subtitles`: the line from {start:g} s ends at {end:g} s, before it starts")
    return start, end, value[2]


def _sequence(name: str, value: Any, of: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise RecordError(f"`{name}` must be a list of {of}, got {reprlib.repr(value)}")
    return tuple(value)


def _check_words(name: str, value: Any) -> None:
    check_text(name, value)
    if not value.strip():
        raise RecordError(f"`{name}` is empty; give a text")


def _check_file(name: str, value: Any, kind: str) -> None:
    if not isinstance(value, str | bytes) or not value.strip():
        raise RecordError(f"`{name}` must be {kind}, got {reprlib.repr(value)}")
    if isinstance(value, str):
        check_text(name, value)


def _turn(value: Any) -> tuple[str, str]:
    turn = _sequence("follow_ups", value, "[user, assistant]")
    if len(turn) != 2:
        raise RecordError(f"`follow_ups` must be a list of [user, assistant], got {reprlib.repr(value)}")
    for text in turn:
        _check_words("follow_ups", text)
    return turn[0], turn[1]


def _number(name: str, value: Any) -> float:
    """A finite float; bool is none, though Python calls it one."""
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordError(f"`{name}` must be a finite number, got {reprlib.repr(value)}")
    return number


def _seconds(name: str, value: Any) -> float:
    seconds = _number(name, value)
    if abs(seconds) > MOST_SECONDS:
        raise RecordError(f"`{name}` must be seconds, at most {MOST_SECONDS:g}, got {seconds:g}")
    return seconds


def _weight(value: Any) -> float:
    weight = _number("weight", value)
    if not 1 / MOST_WEIGHT <= weight <= MOST_WEIGHT:
        raise RecordError(f"`weight` must be above 0, from {1 / MOST_WEIGHT:g} to {MOST_WEIGHT:g}, got {weight:g}")
    return weight
