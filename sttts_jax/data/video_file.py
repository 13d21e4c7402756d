"""Opening a video file through PyAV: known containers alone, read by nothing but our own reader.

FFmpeg opens far more than videos: playlists and scripts that name other files or addresses, subtitles and texts that it
draws, patterns of file names, devices. None of these are on the list here; FFmpeg never sees a path, so that a name is
never an address; and whatever a container asks to be opened beside itself is refused.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import av
from av.stream import Disposition
from PIL import Image

from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.files import open_file
from sttts_jax.data.mp4_samples import declares_too_many
from sttts_jax.data.record import RecordError
from sttts_jax.data.rgb import FORMATS

CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "nut", "rm", "wtv", "dv", "ivf"),
    *("swf", "yuv4mpegpipe", "gif", "apng"),
)
BARE_STREAMS = ("h264", "hevc", "vvc", "av1", "obu", "m4v", "mpegvideo", "vc1")  # most of them without times
SOUND = ("mp3", "wav", "flac", "aac", "aiff")  # so that they are called what they are
WHITELIST = ",".join((*CONTAINERS, *BARE_STREAMS, *SOUND))
STILL_BRANDS = {"avif", "heic", "heix", "heim", "heis", "mif1", "miaf"}  # of a picture in the container of mp4
STILL_FORMATS = {"gif", "apng"}
MARGIN = 1_000_000  # pixels
# Titles that are not UTF-8 are no error: PyAV 19 replaces what it cannot read by itself, and has no word for it.
_TITLES = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
HEAD = 512  # bytes that tell texts from other files


class VideoError(RecordError):
    """A file that cannot be used as a video: one sentence, the file's name first."""


@dataclass(frozen=True)
class OpenVideo:
    """An open file: its container, the stream that players show, its name in errors, and what it may cost."""

    container: av.container.InputContainer
    stream: av.VideoStream
    name: str
    limits: DecodeLimits


@contextlib.contextmanager
def open_video(source: str | Path | bytes, name: str, limits: DecodeLimits) -> Iterator[OpenVideo]:
    """A file (path or its bytes), open in the block. FFmpeg's errors inside become VideoError, and so does running out
    of memory.
    """
    with _opened(source, name) as file, _named(name, limits), _container(file, name, limits) as container:
        stream = _main_stream(container, name)
        _refuse_large(stream, file, name, limits)
        _refuse_pictures(container, stream, file, name)
        stream.codec_context.thread_count = 1  # the pipeline decodes several videos at once instead
        stream.codec_context.options = _codec_options(limits)
        yield OpenVideo(container, stream, name, limits)


@contextlib.contextmanager
def _named(name: str, limits: DecodeLimits) -> Iterator[None]:
    """Gives the errors of a block their name and their true cause."""
    try:
        yield
    except MemoryError as error:
        raise VideoError(f"{name}: asks for more memory than there is; shrink it, or free some memory") from error
    except av.error.ArgumentError as error:  # what decoders say of pictures above the limit, among other things
        raise VideoError(
            f"{name}: cannot be decoded ({_cause(error)}): a frame has more than {limits.max_pixels:,} pixels "
            "(data.max_pixels), or the file is damaged"
        ) from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: is damaged, decoding stopped ({_cause(error)})") from error
    except OSError as error:
        raise VideoError(f"{name}: cannot be read ({_cause(error)})") from error


class _Reader:
    """What FFmpeg reads: bytes by position, without a name."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position, or -1 for one that no file has, as damaged headers ask for."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _opened(source: str | Path | bytes, name: str) -> BinaryIO:
    if not isinstance(source, bytes):
        return open_file(source, name, VideoError)
    if not source:
        raise VideoError(f"{name}: is empty")
    return io.BytesIO(source)


def _codec_options(limits: DecodeLimits) -> dict[str, str]:
    """Decoders hold their own margins against the limit as well, so they get room for them: see `check_size`."""
    return {"max_pixels": str(2 * limits.max_pixels + MARGIN)}


def _container(file: BinaryIO, name: str, limits: DecodeLimits) -> av.container.InputContainer:
    if declares_too_many(file):
        raise VideoError(f"{name}: declares more frames and sounds than it has bytes, so it is damaged")
    try:
        return _open(file, name, _codec_options(limits))
    except (MemoryError, VideoError):
        raise
    except (av.error.FFmpegError, ValueError) as error:
        _refuse(file, name, error)


def _open(file: BinaryIO, name: str, options: dict[str, str]) -> av.container.InputContainer:
    def asked(url: str, flags: int, options: dict[str, str]) -> NoReturn:
        raise VideoError(f"{name}: asks for another file ({url[:100]!r}), and only the file itself is read")

    file.seek(0)
    lists = {"format_whitelist": WHITELIST, "protocol_whitelist": "none"}
    return av.open(_Reader(file), io_open=asked, options={**lists, **options}, **_TITLES)


def _refuse(file: BinaryIO, name: str, error: Exception) -> NoReturn:
    """Says why a file could not be opened, as far as its first bytes tell."""
    picture, moving = _picture(file)
    if picture and moving:
        raise VideoError(f"{name}: is an animated {picture}, which this FFmpeg cannot decode; convert it to mp4")
    if picture:
        raise VideoError(f"{name}: is a picture ({picture}) and not a video; give it as an image") from error
    file.seek(0)
    text = _is_text(file.read(HEAD))
    listed = isinstance(error, av.error.ArgumentError)  # what FFmpeg says of a format that is not on the list
    cause = "no container of videos" if listed else _cause(error)
    told = (
        "it is a text, and playlists or scripts that name other files are not followed"
        if text
        else "it is damaged, cut short or of another kind than mp4, mov, mkv, webm, avi, ts and the like"
    )
    raise VideoError(f"{name}: cannot be opened as a video ({cause}); {told}") from error


def _picture(file: BinaryIO) -> tuple[str, bool]:
    """(its format, whether it moves), or ("", False) for what is no picture."""
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return str(image.format), bool(getattr(image, "is_animated", False))
    except Exception:  # damaged files make Pillow raise nearly everything
        return "", False


def _is_text(head: bytes) -> bool:
    """Whether these are the first bytes of a text."""
    if b"\0" in head:
        return head[:2] in (b"\xff\xfe", b"\xfe\xff")
    return sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head) == 0


def _main_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The one that players show: no cover, not a single picture beside a film, marked as default, the largest."""
    if not container.streams:
        raise VideoError(f"{name}: holds no streams at all")
    aside = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & aside]
    if not films:
        kinds = sorted({"a cover picture" if s.type == "video" else str(s.type) for s in container.streams})
        raise VideoError(f"{name}: holds no video stream, only {' and '.join(kinds)}")
    playable = [stream for stream in films if stream.codec_context is not None]
    if not playable:
        raise VideoError(f"{name}: is coded in a way that this FFmpeg cannot decode; convert it to H.264")
    return max(playable, key=_prominence)


def _prominence(stream: av.VideoStream) -> tuple[bool, bool, int]:
    """`max` takes the first of equals."""
    marked = bool(stream.disposition & Disposition.default)
    return stream.frames != 1, marked, stream.codec_context.width * stream.codec_context.height


def _refuse_pictures(container: av.container.InputContainer, stream: av.VideoStream, file: BinaryIO, name: str) -> None:
    brand = container.metadata.get("major_brand", "").strip()
    still = brand in STILL_BRANDS and stream.frames <= 1
    if container.format.name in STILL_FORMATS:
        place = file.tell()
        kind, moving = _picture(file)
        still = bool(kind) and not moving
        file.seek(place)
    if still:
        raise VideoError(f"{name}: is a picture and not a video; give it as an image")


def _refuse_large(stream: av.VideoStream, file: BinaryIO, name: str, limits: DecodeLimits) -> None:
    """FFmpeg forgets a size above its limit, so that it is looked up in the header, with nothing decoded."""
    context = stream.codec_context
    width, height = context.width, context.height
    if not width * height:
        place = file.tell()
        broken = (av.error.FFmpegError, IndexError)  # what is wrong with it is said when it is decoded
        with contextlib.suppress(*broken), _open(file, name, {"codec_whitelist": "none"}) as container:
            declared = container.streams[stream.index].codec_context
            width, height = declared.width, declared.height
        file.seek(place)
    check_size(width, height, name, limits)


def check_size(width: int, height: int, name: str, limits: DecodeLimits) -> None:
    """Raises VideoError for frames above the limit."""
    if width * height > limits.max_pixels:
        raise VideoError(
            f"{name}: its frames have {width} x {height} pixels, more than {limits.max_pixels:,}; shrink it, or raise "
            "data.max_pixels"
        )


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
