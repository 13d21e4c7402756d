"""Your own videos: one JSON object a line.

    {"video": "clips/a.mp4",
     "messages": [{"question": "What falls?", "answer": "a cup", "style": "video_short_answer"}],
     "id": "a", "start": 2.0, "end": 9.5, "subtitles": [[0.0, 1.5, "Hello"]]}

Only `messages` is required; without `video` or `images` (a list of paths) the record is text alone. Paths are relative
to the file. A message may also have `options` (list of texts), `family`, `follow_ups` (list of [user, assistant]) and
`weight`; `style` is "user_qa" where it is missing.
"""

import json
from typing import Any, overload

from etils import epath

from sttts_jax.data.record import Message, Record, RecordError
from sttts_jax.paths import as_path

RECORD_KEYS = {"video", "images", "messages", "id", "start", "end", "subtitles"}
MESSAGE_KEYS = {"question", "answer", "style", "options", "family", "follow_ups", "weight"}


class JsonlSource:
    """Records by index. Lines are parsed when asked for: a bad line is a bad record, not a bad file."""

    def __init__(self, path: str):
        self._file = as_path(path)
        if not self._file.is_file():
            raise ValueError(f"{path}: no such file; give jsonl:PATH with one JSON object a line")
        self._lines = [(i + 1, line) for i, line in enumerate(self._file.read_text().splitlines()) if line.strip()]
        if not self._lines:
            raise ValueError(f"{path}: holds no records; write one JSON object a line")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        number, line = self._lines[index]
        where = f"{self._file}:{number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{where}: is not JSON ({error})") from error
        _only(fields, RECORD_KEYS, where)
        if not isinstance(fields.get("messages"), list) or not fields["messages"]:
            raise RecordError(f"{where}: needs `messages`, a list of objects with `question` and `answer`")
        return Record(
            id=str(fields.get("id", where)),
            video=self._path(fields.get("video")),
            messages=tuple(_message(m, where) for m in fields["messages"]),
            start=fields.get("start"),
            end=fields.get("end"),
            subtitles=_subtitles(fields.get("subtitles", ()), where),
            images=tuple(self._path(path) for path in _paths(fields.get("images", ()), where)),
        )

    @overload
    def _path(self, path: str) -> str | bytes: ...

    @overload
    def _path(self, path: None) -> None: ...

    def _path(self, path: str | None) -> str | bytes | None:
        if path is None:
            return None
        if "://" in path:
            return as_path(path).read_bytes()
        return str(path if epath.Path(path).is_absolute() else self._file.parent / path)


def _message(fields: Any, where: str) -> Message:
    _only(fields, MESSAGE_KEYS, where)
    for key in ("question", "answer"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise RecordError(f"{where}: every message needs the text `{key}`")
    try:
        return Message(
            question=fields["question"],
            answer=fields["answer"],
            style=str(fields.get("style", "user_qa")),
            options=tuple(map(str, fields.get("options", ()))),
            family=str(fields.get("family", "")),
            follow_ups=tuple((str(user), str(answer)) for user, answer in fields.get("follow_ups", ())),
            weight=None if fields.get("weight") is None else float(fields["weight"]),
        )
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: a message has a field of the wrong kind ({error})") from error


def _paths(value: Any, where: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) and path for path in value):
        raise RecordError(f"{where}: `images` must be a list of paths")
    return list(value)


def _subtitles(value: Any, where: str) -> str | tuple[tuple[float, float, str], ...]:
    if isinstance(value, str):
        return value
    try:
        return tuple((float(start), float(end), str(text)) for start, end, text in value)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: `subtitles` must be a text or a list of [start, end, text]") from error


def _only(fields: Any, known: set[str], where: str) -> None:
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: needs a JSON object, got {type(fields).__name__}")
    if set(fields) - known:
        raise RecordError(
            f"{where}: unknown field {', '.join(sorted(set(fields) - known))}; known are {', '.join(sorted(known))}"
        )
