"""Subtitle files as they are found, and their cut to a clip."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.data.record import RecordError
from sttts_jax.data.subtitles import cut_subtitles, read_subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello, <i>world</i>.

2
00:00:03,250 --> 00:00:04,000  X1:100 X2:200
{\\an8}<font color="#ffffff">Two</font>
lines
"""
VTT = """WEBVTT - a talk

STYLE
::cue { color: red }

NOTE a note --
over lines

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Ann>Hello, <b.loud>world</b>.

01:00:03.25 --> 01:00:04.000
<00:00:03.500>A &amp; B &lt;i&gt; &notanentity;
"""


def _read(folder: Path, text: str | bytes, name: str = "a.srt") -> tuple[tuple[float, float, str], ...]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_subtitles(folder / name)


def test_subrip(tmp_path: Path) -> None:
    expected = ((1.0, 2.5, "Hello, world."), (3.25, 4.0, "Two lines"))
    assert _read(tmp_path, SRT) == expected
    for changed in (SRT.replace("\n", "\r\n"), SRT.replace("\n", "\r"), "\ufeff" + SRT, SRT.rstrip(), "\n\n" + SRT):
        assert _read(tmp_path, changed) == expected
    assert _read(tmp_path, SRT.replace(",", ".").replace("00:00:0", "0:0")) == (
        (1.0, 2.5, "Hello. world."),
        expected[1],
    )


def test_webvtt(tmp_path: Path) -> None:
    lines = _read(tmp_path, VTT, "a.VTT")
    assert lines == ((1.0, 2.5, "Hello, world."), (3603.25, 3604.0, "A & B <i> &notanentity;"))


def test_sloppy_files(tmp_path: Path) -> None:
    """No empty lines between cues, cues out of order, on top of each other, without text; arrows and numbers."""
    text = (
        "7\n00:10 --> 00:12\nlate\n8\n00:00:05,5 --> 00:00:11\nearly\n9\n00:11 --> 00:11\n\n10\n00:13 --> 00:14\n"
        "a --> b\n\n11\n00:15 --> 00:16\n42\n\n12\n00:17 --> 00:18\n1999\n"
    )
    expected = (5.5, 11.0, "early"), (10.0, 12.0, "late"), (13.0, 14.0, "a --> b"), (15.0, 16.0, "42")
    assert _read(tmp_path, text) == (*expected, (17.0, 18.0, "1999"))


def test_words_behind_an_empty_line_belong_to_the_cue(tmp_path: Path) -> None:
    text = "1\n00:01 --> 00:02\nfirst\n\nsecond\n9:00 - 17:00\n\nNOTE well\n\n2\n00:03 --> 00:04\n\nlate\n\nthe end\n"
    assert _read(tmp_path, text) == ((1.0, 2.0, "first second 9:00 - 17:00 NOTE well"), (3.0, 4.0, "late the end"))
    lone = "00:01 --> 00:02\na\n\nb\n00:03 --> 00:04\nc\n"  # of SubRip a cue has a number and no name
    assert _read(tmp_path, lone) == ((1.0, 2.0, "a b"), (3.0, 4.0, "c"))
    web = _read(tmp_path, f"WEBVTT\n\n{lone}\nNOTE not\nsaid\n\nd\n\nSTYLE\n::cue {{}}\n", "a.vtt")
    assert web == ((1.0, 2.0, "a"), (3.0, 4.0, "c d"))
    assert _read(tmp_path, "WEBVTT\n\n00:01.000 --> 00:02.000\nNOTE said\n", "a.vtt") == ((1.0, 2.0, "NOTE said"),)


def test_a_line_of_a_blank_ends_no_cue(tmp_path: Path) -> None:
    """As YouTube writes them."""
    text = (
        "WEBVTT\nKind: captions\nLanguage: en\n\n00:00:00.080 --> 00:00:02.470 align:start position:0%\n \n"
        "so<00:00:00.320><c> today</c>\n\n00:00:02.470 --> 00:00:02.480\nso today\n \n\n"
    )
    assert [line[2] for line in _read(tmp_path, text, "a.vtt")] == ["so today", "so today"]


def test_words_before_the_first_times_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _read(tmp_path, SRT) and _read(tmp_path, VTT, "a.vtt") and not caplog.records
    assert len(_read(tmp_path, f"Made by me\n\n{SRT}")) == 2
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{tmp_path}/a.srt: 'Made by me' stands before the first times and is left out"


def test_only_known_tags_are_taken_out(tmp_path: Path) -> None:
    (line,) = _read(tmp_path, "00:01 --> 00:02\nx <y and z> w, 1 < 2 <im_patch> <|im_end|> <br/>é\x0cf\n")
    assert line[2] == "x <y and z> w, 1 < 2 <im_patch> <|im_end|> é f"
    text = "<i>if</I> a<b and c > d <c.x.y>then</c> <v Ann>so <font color='red'>e</font>"
    (line,) = _read(tmp_path, f"00:01 --> 00:02\n{text}\n")
    assert line[2] == "if a<b and c > d then so e"


def test_a_clip(tmp_path: Path) -> None:
    lines = ((0.0, 4.0, "a"), (4.0, 6.0, "b"), (7.0, 9.0, "c"), (10.0, 11.0, "d"))
    assert cut_subtitles(lines) == lines
    assert cut_subtitles(lines, 5, 10) == ((0.0, 1.0, "b"), (2.0, 4.0, "c"))
    assert cut_subtitles(lines, 4, 7) == ((0.0, 2.0, "b"),)  # "a" is gone at 4 s, "c" not yet there
    assert cut_subtitles(lines, None, 5) == ((0.0, 4.0, "a"), (4.0, 5.0, "b"))
    assert cut_subtitles(lines, 20) == ()


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.txt", b"", "must be in a file that ends in .srt or .vtt"),
        ("a.srt", "00:01 --> 00:02\né".encode("latin1"), "is not UTF-8 .byte 16.; convert it"),
        ("a.srt", SRT.encode("utf-16"), "is UTF-16 and not UTF-8; convert it, as with iconv -f utf-16 -t utf-8"),
        ("a.vtt", VTT.encode("utf-16-le"), "is UTF-16-LE and not UTF-8"),
        ("a.srt", b"9" * 5000 + b":00:01,000 --> 00:00:02,000\ntext\n", "line 1: the times '99999.* cannot be read"),
        ("a.srt", b"nothing here\n", "holds no subtitles with times"),
        ("a.vtt", b"WEBVTT\n\n00:01.000 -> 00:02.000\ntext\n", "line 3: the times '00:01.000 -> .* cannot be read"),
        ("a.vtt", b"WEBVTT\n\nNOTE nothing\n", "holds no subtitles with times"),
        ("a.srt", b"1\n00:00:01;000 --> 00:00:02,000\ntext\n", "line 2: the times '00:00:01;000 --> .* cannot be read"),
        ("a.srt", b"1\n-00:00:01,000 --> 00:00:02,000\ntext\n", "line 2: the times"),
        ("a.srt", b"1\n00:00:03,000 --> 00:00:02,000\ntext\n", "line 2: the subtitle ends before it starts"),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    with pytest.raises(RecordError, match=cause) as error:
        _read(tmp_path, content, name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="a.srt: no such file"):
        read_subtitles(tmp_path / "a.srt")


_TIMES = st.integers(0, 40_000_000)  # milliseconds


@given(
    st.lists(st.tuples(_TIMES, _TIMES, st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)), min_size=1)
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, cues: list[tuple[int, int, str]]) -> None:
    def stamp(ms: int) -> str:
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    cues = [(min(a, b), max(a, b), "w" + text.translate({ord(c): "x" for c in "<&{"})) for a, b, text in cues]
    blocks = [f"{n}\n{stamp(a)} --> {stamp(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues)]
    lines = _read(tmp_path_factory.mktemp("srt"), "\n".join(blocks))
    expected = sorted(((a / 1000, b / 1000, text) for a, b, text in cues), key=lambda line: line[:2])
    assert [text for *_, text in lines] == [text for *_, text in expected]
    for got, wanted in zip(lines, expected, strict=True):
        assert got[:2] == pytest.approx(wanted[:2], abs=1e-9)


_PIECES = [
    *("1", "2", "00:00:01,000 --> 00:00:02,000", "00:03.000 --> 00:04.000 align:start", "00:00:09,5 --> 00:00:01,0"),
    *(
        "",
        "",
        "",
        " ",
        "hello",
        "<i>there</i>",
        "NOTE well",
        "STYLE",
        "WEBVTT",
        "-->",
        "a --> b",
        "00:00:05 -> 00:00:06",
    ),
    *(f"&#{'9' * 5000};", f"{'9' * 5000}:00:01,0 --> 00:02"),
    *("&amp;&#xd800;&#9999999999;", "{\\an8}up", "<c.x><00:00:01.000>", "\ufeff", "\u2028x", "\x0c", "9:00 - 17:00"),
]


@pytest.mark.parametrize("ending", [".srt", ".vtt"])
def test_any_lines_are_read_or_refused_and_no_word_behind_a_time_is_lost(tmp_path: Path, ending: str) -> None:
    """Lines in any order, and bytes changed. What is read is text that UTF-8 can write."""
    rng, read = np.random.default_rng(0), 0
    for _ in range(1500):
        text = "\n".join(_PIECES[i] for i in rng.integers(len(_PIECES), size=int(rng.integers(1, 12))))
        data = bytearray(f"00:01 --> 00:02\n{text}".encode())
        if rng.random() < 0.3:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            lines = _read(tmp_path, bytes(data), f"a{ending}")
        except RecordError as error:
            assert str(tmp_path) in str(error)
            continue
        said = " ".join(line[2] for line in lines)
        said.encode()
        assert ending == ".vtt" or said.count("hello") == data.count(b"hello")
        read += 1
    assert read > 500
