"""Files of one JSON object a line, by the lines of the format: \\n ends one, whatever else Unicode calls a line's end.

for number, line in json_lines(path.read_bytes(), str(path)):
    fields = parse_object(line, f"{path}:{number}")
"""

import codecs
import json
from typing import Any

from sttts_jax.data.record import RecordError


def json_lines(data: bytes, name: str) -> list[tuple[int, bytes]]:
    """The lines with something in them, with their numbers from 1. A byte order mark, at the start or where files were
    joined, and \\r at the ends of lines are no part of them.

    Raises ValueError for UTF-16 and UTF-32, whose bytes have no such lines.
    """
    encoding = json.detect_encoding(data[:4])
    if not encoding.startswith("utf-8"):
        raise ValueError(
            f"{name}: is {encoding.upper()} and not UTF-8; convert it, as with iconv -f {encoding} -t utf-8"
        )
    lines = enumerate(data.split(b"\n"), 1)
    return [(number, line) for number, line in lines if line.removeprefix(codecs.BOM_UTF8).strip()]


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line without the fields that are null, which are absent. Raises RecordError that begins with
    `where`.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: is not UTF-8 (byte {error.start + 1} of the line); convert the file, as with iconv -f cp1252 -t "
            "utf-8"
        ) from None
    except RecursionError:
        raise RecordError(f"{where}: is nested too deeply for a record") from None
    except ValueError as error:
        raise RecordError(f"{where}: is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise RecordError(f"{where}: needs a JSON object, got {type(fields).__name__}")
    return fields


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"{twice[:60]!r} is there twice")
    return {name: value for name, value in pairs if value is not None}
