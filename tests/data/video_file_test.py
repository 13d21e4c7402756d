"""Which files are opened as videos, what is read because of them, and what is said of the others."""

import io
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sttts_jax.data.decode_limits import USUAL_LIMITS
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.video import VideoError, decode, probe
from sttts_jax.data.video_file import WHITELIST, open_video
from tests.data.films import film, numbered, read_number

PACKAGE = Path(__file__).parents[2] / "sttts_jax"
SECRET = 77  # the number of the frames that nobody may see


def _numbers(source: Path | bytes, **options: object) -> list[int]:
    return [read_number(frame) for frame in decode(source, FrameSampling(99, 2), size=None, **options).frames]


@pytest.mark.parametrize(
    ("container", "codec", "rate", "pix_fmt"),
    [("mov", "libx264", 10, "yuv420p"), ("matroska", "ffv1", 10, "yuv420p"), ("webm", "libvpx", 10, "yuv420p")]
    + [("avi", "mpeg4", 10, "yuv420p"), ("mpegts", "libx264", 10, "yuv420p"), ("mpeg", "mpeg2video", 25, "yuv420p")]
    + [("flv", "flv", 10, "yuv420p"), ("asf", "wmv2", 10, "yuv420p"), ("nut", "mpeg4", 10, "yuv420p")]
    + [("gif", "gif", 10, "rgb8"), ("apng", "apng", 10, "rgb24"), ("ivf", "libvpx", 10, "yuv420p")]
    + [("matroska", "ffv1", 10, "gray16le"), ("matroska", "ffv1", 10, "yuv420p10le"), ("mov", "png", 10, "rgb48be")],
)
def test_containers_of_videos_are_opened(container: str, codec: str, rate: int, pix_fmt: str, tmp_path: Path) -> None:
    """Under any name, as a path and as bytes; deep samples are scaled."""
    data = film(numbered(50), container, codec, rate=rate, pix_fmt=pix_fmt)
    (tmp_path / "a.txt").write_bytes(data)
    assert _numbers(tmp_path / "a.txt") == _numbers(data) == [*np.arange(0, 50, rate / 2).astype(int), 49]


def test_every_name_on_the_list_is_a_format() -> None:
    known = {name for known in av.formats_available for name in known.split(",")}
    assert set(WHITELIST.split(",")) <= known
    never = {"concat", "hls", "dash", "sdp", "rtsp", "rtp", "image2", "tty", "lavfi", "srt", "ass", "webvtt", "vobsub"}
    assert not never & set(WHITELIST.split(","))


def test_one_door() -> None:
    """Nothing else of the package opens a container for reading."""
    using = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bav\.open\(", path.read_text())}
    assert using == {"video_file.py", "encode.py"}  # the latter writes


def _scripts(address: str, beside: Path) -> dict[str, bytes]:
    """Files that name others, by an address or a path."""
    lines: dict[str, str] = {}
    for name, target in (("address", address), ("path", str(beside)), ("relative", beside.name)):
        lines |= {
            f"{name}.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
            f"{name}-hls.mp4": f'#EXTM3U\n#EXT-X-MAP:URI="{target}"\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n',
            f"{name}.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
            f"{name}-concat.mp4": f"ffconcat version 1.0\nfile '{target}'\noption safe 0\n",
            f"{name}.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT5S"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" codecs="avc1">'
            f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>",
            f"{name}.asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
            f"{name}.pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
            f"{name}-imf.xml": f'<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{target}</Path>',
            f"{name}.avs": f'DirectShowSource("{target}")\n',
            f"{name}.idx": f"# VobSub index file, v7\nsize: 64x48\nid: en, index: 0\ntimestamp: {target}\n",
        }
    host, port = address.split("/")[2].split(":")
    lines["a.sdp"] = (
        f"v=0\r\no=- 0 0 IN IP4 {host}\r\ns=x\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=video {port} RTP/AVP 96\r\n"
        "a=rtpmap:96 H264/90000\r\n"
    )
    lines["a.rtsp"] = f"rtsptext\nrtsp://{host}:{port}/a\n"
    texts = ("plain words", "\x1b[31mcolours\x1b[0m", "1\n00:00:01,000 --> 00:00:02,000\nline\n", "WEBVTT\n\n")
    lines |= {
        f"text{number}.{ending}": text * 30 for number, text in enumerate(texts) for ending in ("txt", "nfo", "ans")
    }
    return {name: text.encode() for name, text in lines.items()}


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """On loopback, one port of TCP and UDP; nobody may have knocked when the test ends."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(tcp.getsockname())
        for each in (tcp, udp):
            each.setblocking(False)
        yield [tcp, udp]
        with pytest.raises(BlockingIOError):
            tcp.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)


def test_scripts_and_texts_open_nothing(
    listeners: list[socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither as a path nor as bytes, and a name that looks like an address is the name of no file."""
    port = listeners[0].getsockname()[1]
    beside = tmp_path / "other.mp4"
    beside.write_bytes(encode_mp4(numbered(20, SECRET), 10))
    monkeypatch.chdir(tmp_path)
    for name, data in _scripts(f"http://127.0.0.1:{port}/a.mp4", beside).items():
        Path(name).write_bytes(data)
        for source in (Path(name), name, data):
            with pytest.raises(
                VideoError, match="cannot be opened as a video .*it is a text, and playlists or scripts"
            ):
                probe(source)
    names = [
        f"{scheme}://127.0.0.1:{port}/a.mp4" for scheme in ("http", "https", "tcp", "udp", "rtsp", "rtp", "hls+http")
    ]
    names += ["concat:other.mp4|other.mp4", "file:other.mp4", "subfile,,start,0,end,0,,:other.mp4", "cache:other.mp4"]
    names += ["other%d.mp4", "*.mp4", "testsrc", "movie=other.mp4", "data:video/mp4;base64,AAAA", "pipe:0", "-"]
    for name in names:
        with pytest.raises(VideoError, match="no such file"):
            probe(name)
    folder = tmp_path / "http:" / f"127.0.0.1:{port}"
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_bytes(encode_mp4(numbered(20), 10))
    for name in (f"http://127.0.0.1:{port}/a.mp4", f"http:/127.0.0.1:{port}/a.mp4"):
        assert _numbers(Path(name))[:2] == [0, 5]


@pytest.mark.parametrize(
    "name", ["12:30:45.mp4", "img%03d.mp4", "a?b=c&d#e.mp4", "*.mp4", "-", "a\nb.mp4", "ä€\udcff.mp4"]
)
def test_any_name_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(encode_mp4(numbered(20), 10))
    for path in (name, f"./{name}", str(tmp_path / name)):
        assert [read_number(f) for f in decode(path, FrameSampling(3), size=None).frames] == [0, 10, 19]


def test_what_a_container_asks_for_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QuickTime file may say that its samples lie in another file."""
    monkeypatch.chdir(tmp_path)
    other = encode_mp4(numbered(20, SECRET), 10)
    Path("other.mp4").write_bytes(other)
    data = _with_reference(other, str(tmp_path / "other.mp4").encode())
    Path("a.mov").write_bytes(data)
    with av.open("a.mov", options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:  # the door is there
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert read_number(frame) == SECRET
    for source in (data, Path("a.mov")):
        with pytest.raises(VideoError, match="its video stream holds no frames"):
            decode(source, FrameSampling(3), size=None)


def _with_reference(movie: bytes, path: bytes) -> bytes:
    """`movie` (its index last) whose samples are said to lie in the file `path`: an alias in the place of `dref`."""
    at = movie.index(b"dref") - 4
    old = struct.unpack(">I", movie[at : at + 4])[0]
    volume, name = b"\x01v".ljust(28, b"\0"), b"\x01a".ljust(64, b"\0")
    fixed = bytes(10) + volume + bytes(12) + name + bytes(16) + bytes(4) + bytes(16)
    colons = path.replace(b"/", b":") + b"\0" * (len(path) % 2)
    alias = bytes(4) + fixed + struct.pack(">HH", 2, len(path)) + colons + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I", 8 + len(alias)) + b"alis" + alias
    new = struct.pack(">I", 16 + len(entry)) + b"dref" + struct.pack(">II", 0, 1) + entry
    out, grown = bytearray(movie[:at] + new + movie[at + old :]), len(new) - old
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = out.index(name) - 4
        out[place : place + 4] = struct.pack(">I", struct.unpack(">I", out[place : place + 4])[0] + grown)
    return bytes(out)


def _image(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(numbered(1)[0]).save(file, kind, **options)
    return file.getvalue()


def test_pictures_and_sound_are_called_so() -> None:
    moving = {"save_all": True, "append_images": [Image.fromarray(frame) for frame in numbered(3, 5)]}
    cases = {
        _image("JPEG"): "is a picture .JPEG. and not a video; give it as an image",
        _image("PNG"): "is a picture",
        _image("WEBP"): "is a picture .WEBP. and not a video",
        _image("GIF"): "is a picture and not a video; give it as an image",
        _image("AVIF"): "is a picture and not a video; give it as an image",
        _image("WEBP", **moving): "is an animated WEBP, which this FFmpeg cannot decode; convert it to mp4",
        _song(): "holds no video stream, only a cover picture and audio",
        bytes(range(256)) * 8: "it is damaged, cut short or of another kind than mp4",
    }
    for data, message in cases.items():
        with pytest.raises(VideoError, match=f"^x: .*{message}"):
            decode(data, FrameSampling(3), size=None, name="x")


def _song() -> bytes:
    """An mp3 with a cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as output:
        sound = output.add_stream("libmp3lame", rate=44100)
        cover = output.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1)[0], format="rgb24")))
        heard = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        heard.rate = 44100
        output.mux([*cover.encode(), *sound.encode(heard), *sound.encode()])
    return file.getvalue()


def _two(
    sizes: list[int], marked: int | None, container: str = "matroska", counts: tuple[int, int] = (20, 20)
) -> bytes:
    """Two streams, the number of whose frames begins at 0 and at 100; the default is `marked`."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams = [output.add_stream("mpeg4", rate=10) for _ in sizes]
        for number, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
            stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
            stream.disposition = av.stream.Disposition(int(number == marked))
        for number, (stream, count) in enumerate(zip(streams, counts, strict=True)):
            for pixels in numbered(count, 100 * number, sizes[number], sizes[number]):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux([packet for stream in streams for packet in stream.encode()])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "first"),
    [
        (_two([64, 128], 1), 100),  # a preview, then the film
        (_two([128, 64], 1), 100),  # the mark goes before the size
        (_two([64, 128], None), 100),  # then the larger one
        (_two([64, 64], None), 0),  # of equals the first
        (_two([128, 64], None, "mp4", (1, 20)), 100),  # no still beside a film
    ],
)
def test_the_stream_that_players_show(data: bytes, first: int) -> None:
    assert _numbers(data)[:2] == [first, first + 5]


def test_an_avif_that_moves_is_a_video() -> None:
    file = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in numbered(20, height=96, width=128)]
    pictures[0].save(file, "AVIF", save_all=True, append_images=pictures[1:], duration=100)
    assert _numbers(file.getvalue()) == [0, 5, 10, 15, 19]


def test_metadata_in_any_encoding() -> None:
    data = film(numbered(5), "matroska")
    with av.open(io.BytesIO(data)) as container:
        writer = container.metadata["ENCODER"].encode()
    with open_video(data.replace(writer, b"\xff" * len(writer)), "x", USUAL_LIMITS) as video:
        assert video.stream.codec_context.width == 64
