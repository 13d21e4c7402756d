"""Your own videos: one JSON object a line.

    {"video": "clips/a.mp4",
     "messages": [{"question": "What falls?", "answer": "a cup", "style": "video_short_answer"}],
     "id": "a", "start": 2.0, "end": 9.5, "subtitles": [[0.0, 1.5, "Hello"]]}

Only `messages` is required; without `video` or `images` (a list of paths) the record is text alone. Paths are relative
to the file. `subtitles` may also be one text, or the name of a .srt or .vtt file of the whole video. A message may also
have `options` (list of texts), `family`, `follow_ups` (list of [user, assistant]) and `weight`; `style` is "user_qa"
where it is missing. A field that is null is missing. What the fields must be is `data.record`'s to say.
"""

import dataclasses
import hashlib
import reprlib
from typing import Any

from sttts_jax.data.files import STORE, read_object
from sttts_jax.data.json_lines import json_lines, parse_object
from sttts_jax.data.record import Message, Record, RecordError, names_subtitle_file, naming
from sttts_jax.data.sources.split import SPLIT, split_indices
from sttts_jax.data.subtitles import cut_subtitles, read_subtitles
from sttts_jax.paths import as_path, is_local, read_bytes

RECORD_KEYS = {"video", "images", "messages", "id", "start", "end", "subtitles"}
UNKNOWN = "?"  # stands for an answer that nobody needs
MESSAGE_KEYS = {"question", "answer", "style", "options", "family", "follow_ups", "weight"}


class JsonlSource:
    """Records by index. Lines are parsed when asked for: a bad line is a bad record, not a bad file.

    Raises ValueError for a file that is missing, empty or in UTF-16, and for a part that it does not have.
    """

    def __init__(self, path: str, split: str = SPLIT):
        """`split` is the whole file or a part of its records, see `split_indices`."""
        self._file = as_path(path)
        if not self._file.exists():
            raise ValueError(f"{path}: no such file; give the path of one with a JSON object a line")
        data = read_bytes(self._file)
        lines = json_lines(data, path)
        if not lines:
            raise ValueError(f"{path}: holds no records; write one JSON object a line")
        self._lines = [lines[index] for index in split_indices(split, len(lines), path)]
        self.fingerprint = hashlib.sha256(data).hexdigest()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        number, line = self._lines[index]
        where = f"{self._file}:{number}"
        fields = parse_object(line, where)
        with naming(where):
            return self._record(self._fields(fields), where)

    def _fields(self, given: dict[str, Any]) -> dict[str, Any]:
        """Those of a record."""
        _only(given, RECORD_KEYS)
        return given

    def _record(self, fields: dict[str, Any], where: str) -> Record:
        messages, images = fields.get("messages"), fields.get("images", ())
        if not isinstance(messages, list) or not messages:
            raise RecordError("needs `messages`, a list of objects with `question` and `answer`")
        if not isinstance(images, list | tuple):
            raise RecordError("`images` must be a list of paths")
        name = fields.get("id", "")
        record = Record(
            # A whole number is a name as well: tables number their rows.
            id=str(name) if isinstance(name, int) and not isinstance(name, bool) else name or where,
            video=self._content(fields.get("video")),
            messages=tuple(map(_message, messages)),
            start=fields.get("start"),
            end=fields.get("end"),
            images=tuple(map(self._content, images)),
            place=where,
        )
        return dataclasses.replace(record, subtitles=self._subtitles(fields.get("subtitles", ()), record))

    def _subtitles(self, value: Any, record: Record) -> Any:
        """Of a file the lines of the clip; anything else is the record's to check."""
        if not isinstance(value, str) or not names_subtitle_file(value):
            return value
        return cut_subtitles(read_subtitles(self._file.parent / value), record.start, record.end)

    def _content(self, path: Any) -> Any:
        """A local path as a whole, the bytes of another; what is no path is the record's to check."""
        if not isinstance(path, str) or not path.strip():
            return path
        whole = path if "://" in path else str(self._file.parent / path)
        if is_local(whole):
            return whole
        if not whole.startswith(STORE):
            scheme = whole.partition("://")[0]
            raise RecordError(f"{path[:200]}: {scheme}:// is not read; download the file and give its path")
        return read_object(whole, whole, RecordError)


class QuestionFile(JsonlSource):
    """Questions without answers: lines as above, but `answer` need not be there, and where there is one question, it,
    its `style` and its `options` may stand in the line itself.

        {"video": "clips/a.mp4", "question": "What falls?"}
    """

    def _fields(self, given: dict[str, Any]) -> dict[str, Any]:
        single = {name: given[name] for name in MESSAGE_KEYS if name in given}
        fields = {name: value for name, value in given.items() if name not in single}
        if single and "messages" in given:
            raise RecordError("has `question` and `messages`; give one of them")
        messages = [single] if single else given.get("messages")
        if isinstance(messages, list):
            fields["messages"] = [{"answer": UNKNOWN, **m} if isinstance(m, dict) else m for m in messages]
        return super()._fields(fields)


def _message(fields: Any) -> Message:
    if not isinstance(fields, dict):
        raise RecordError(f"every one of `messages` must be an object, got {reprlib.repr(fields)}")
    _only(fields, MESSAGE_KEYS)
    for key in ("question", "answer"):
        if key not in fields:
            raise RecordError(f"every message needs the text `{key}`")
    given: dict[str, Any] = {"style": "user_qa", **fields}
    return Message(**given)


def _only(fields: dict[str, Any], known: set[str]) -> None:
    unknown = ", ".join(sorted(set(fields) - known))
    if unknown:
        raise RecordError(f"unknown field {unknown[:200]}; known are {', '.join(sorted(known))}")
