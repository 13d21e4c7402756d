"""Lines of JSON by the lines of the format, whatever is in them."""

import json

import pytest

from sttts_jax.data.json_lines import json_lines, parse_object
from sttts_jax.data.record import RecordError

ENDS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei"  # all that str.splitlines takes for the end of a line


def test_only_a_newline_ends_a_line() -> None:
    rows = [{"text": ENDS, "n": n} for n in range(3)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for data in (text.encode(), text.encode("utf-8-sig"), f"\n \r\n{text}\n\n".encode()):
        lines = json_lines(data, "set.jsonl")
        assert [parse_object(line, "x")["n"] for _, line in lines] == [0, 1, 2]
    assert [number for number, _ in lines] == [3, 4, 5]
    plain = json.dumps({"text": ENDS}).encode()
    assert parse_object(plain, "x") == {"text": ENDS}
    joined = b"\n".join(part.encode("utf-8-sig") for part in ('{"n": 1}', '{"n": 2}'))
    assert [parse_object(line, "x") for _, line in json_lines(joined, "x")] == [{"n": 1}, {"n": 2}]


def test_null_is_absent() -> None:
    assert parse_object(b'{"a": null, "b": [null, {"c": null}]}', "x") == {"b": [None, {}]}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_of_a_file_are_named(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"^set.jsonl: is UTF-(16|32).* not UTF-8; convert it, as with iconv -f utf-"):
        json_lines('{"a": "é"}\n{"a": 2}\n'.encode(encoding), "set.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": "é"}'.encode("cp1252"), "x:3: is not UTF-8 .byte 8 of the line.; convert the file, as with iconv -f"),
        (b"not json", "x:3: is not JSON"),
        (b'{"a": 1, "a": 2}', "x:3: is not JSON .'a' is there twice"),
        (b"[1]", "x:3: needs a JSON object, got list"),
        (b"[" * 100_000, "x:3: is nested too deeply"),
        (b'{"a": ' * 100_000, "x:3: is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "x:3: is not JSON"),
    ],
)
def test_a_bad_line_names_its_place(line: bytes, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        parse_object(line, "x:3")
