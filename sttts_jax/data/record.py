"""A record: one video (or none), images (or none) and what is asked about it. Every source yields these."""

from dataclasses import dataclass


class RecordError(ValueError):
    """A record that cannot be used: one sentence, the record's name first. Training counts, names and skips it."""


@dataclass(frozen=True)
class Message:
    """One conversation about the video: a branch of the message tree (Molmo2).

    With `options` and a multiple-choice style the prompt lists the options and the target is "B. text"; with any
    other style the options are for scoring only. `weight` replaces the 2/sqrt(n) weighting by a constant, as Molmo2
    does for captions (0.1) and pointing (0.2).
    """

    question: str
    answer: str
    style: str
    options: tuple[str, ...] = ()
    family: str = ""
    follow_ups: tuple[tuple[str, str], ...] = ()  # further turns: (user, assistant)
    weight: float | None = None


@dataclass(frozen=True)
class Record:
    """A video (or none), images (or none) and what is asked. Without either the record is text alone.

    video         a path, the bytes of a file, or None
    start, end    cut a clip out of the video, seconds
    subtitles     lines (start, end, text) in seconds within the clip; or plain text
    images        paths or bytes; they come before the video
    """

    id: str
    video: str | bytes | None
    messages: tuple[Message, ...]
    start: float | None = None
    end: float | None = None
    subtitles: str | tuple[tuple[float, float, str], ...] = ()
    images: tuple[str | bytes, ...] = ()
