"""From a record to an example with its pictures; unusable records are counted, named once and skipped."""

import logging
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from sttts_jax.data.config import DataConfig, Source
from sttts_jax.data.crops import ImageCrops, crop_image, read_image
from sttts_jax.data.decode_limits import DecodeLimits
from sttts_jax.data.packing import NO_IMAGES, Item, lengths
from sttts_jax.data.prompt import build_example
from sttts_jax.data.record import Record, RecordError, naming
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import RowShape
from sttts_jax.data.sources.registry import Records
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.data.video import Video, decode
from sttts_jax.pruning.budget import n_drop

LOG = logging.getLogger("sttts_jax.data")
MOST_SAID = 600  # characters about a bad record
LEAST_SEEN = 20  # records to see before the share of bad ones can stop a run
MOST_IN_A_ROW = 10_000  # unusable records, after which none is expected to follow
CACHE_BYTES = 8 * 2**30


class TooManyBadRecords(ValueError):
    """More of the records are unusable than the config allows, or all of them."""


class FrameCache:
    """Decoded frames by (source, index), up to CACHE_BYTES; what comes after is decoded each time. Safe for threads."""

    def __init__(self, limit: int = CACHE_BYTES):
        self._videos: dict[tuple[int, int], Video] = {}
        self._left = limit
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> Video | None:
        return self._videos.get(key)

    def put(self, key: tuple[int, int], video: Video) -> None:
        with self._lock:
            if key in self._videos or self._left < 0:
                return
            self._left -= video.frames.nbytes
            if self._left < 0:
                LOG.warning(
                    "the frame cache is full with %d videos; the others are decoded each time", len(self._videos)
                )
                return
            self._videos[key] = video


class BadRecords:
    """Counts; logs each bad record once; raises TooManyBadRecords past the allowed share. Safe for threads.

    most_in_a_row: with so many unusable ones and no other between them nothing can be used, whatever share is allowed.
    """

    def __init__(self, allowed_share: float, most_in_a_row: int):
        self.allowed_share = allowed_share
        self._most_in_a_row = most_in_a_row
        self.seen = 0
        self.bad = 0
        self._in_a_row = 0
        self.named: dict[tuple[int, int], str] = {}  # (source, index) -> cause
        self._lock = threading.Lock()

    def good(self) -> None:
        with self._lock:
            self.seen += 1
            self._in_a_row = 0

    def add(self, key: tuple[int, int], cause: str) -> None:
        """`cause` begins with the record's name."""
        cause = cause if len(cause) <= MOST_SAID else f"{cause[: MOST_SAID // 2]} .. {cause[-MOST_SAID // 2 :]}"
        with self._lock:
            self.seen += 1
            self.bad += 1
            self._in_a_row += 1
            if key not in self.named:
                LOG.warning("bad record skipped: %s", cause)
            self.named[key] = cause
            if self.seen >= LEAST_SEEN and self.bad > self.allowed_share * self.seen:
                raise TooManyBadRecords(
                    f"{self.bad} of {self.seen} records are unusable, more than bad_share={self.allowed_share:g}; "
                    f"mend the data or raise bad_share (the last one: {cause})"
                )
            if self._in_a_row >= self._most_in_a_row:
                raise TooManyBadRecords(
                    f"none of the last {self._in_a_row} records can be used, so there is nothing to train on; mend the "
                    f"data (the last one: {cause})"
                )


class Reader:
    """(source number, record index, draw) -> Item, or None for a bad record. Called from several threads."""

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Records],
        tokenizer: Tokenizer,
    ):
        """`sources` are those of the config, opened, in its order."""
        self._config, self._sources, self._tokenizer = config, sources, tokenizer
        self._shape = config.row_shape
        self._cache = FrameCache() if config.cache else None
        self.bad = BadRecords(config.bad_share, _epoch(config.sources, [len(source) for source in sources]))

    def __call__(self, draw: tuple[int, int, int]) -> Item | None:
        source, index, number = draw
        try:
            item = self._item(source, index, np.random.default_rng(number))
        except RecordError as error:
            self.bad.add((source, index), str(error))
            return None
        self.bad.good()
        return item

    def _item(self, source: int, index: int, rng: np.random.Generator) -> Item:
        record = self._sources[source][index]
        with naming(record.name):
            return self._example(record, (source, index), rng)

    def _example(self, record: Record, key: tuple[int, int], rng: np.random.Generator) -> Item:
        images = read_images(record, self._shape, self._config.max_crops, self._config.limits)
        video = None
        if record.video is not None:
            video = self._cache.get(key) if self._cache else None
            if video is None:
                video = read_video(record, self._config.frame_sampling, self._shape.size, self._config.limits)
            if self._cache:
                self._cache.put(key, video)
        order = rng.permutation(len(record.messages))[: self._config.max_messages or None]
        example = build_example(
            self._tokenizer,
            [] if video is None else video.times,
            [record.messages[i] for i in order],
            cells=self._shape.cells,
            subtitles=record.subtitles,
            limit=self._token_limit(0 if video is None else len(video.times)),
            images=images,
        )
        lengths(example, self._shape)  # raises for an example that no row holds
        pictures = [image.crops for image in images] + ([] if video is None else [video.frames])
        return Item(example, join_pictures(pictures, self._shape), record.name)

    def _token_limit(self, frames: int) -> int:
        """Tokens before pruning that shrink to a full row."""
        return self._shape.length + n_drop(frames, self._shape.fraction, self._shape.cells)


def _epoch(sources: Sequence[Source], lengths: Sequence[int]) -> int:
    """Draws within which every record comes once, however small the weight of its source: those to wait for a good one.

    At least LEAST_SEEN, at most MOST_IN_A_ROW.
    """
    total = sum(source.weight for source in sources)
    draws = max(length * total / source.weight for source, length in zip(sources, lengths, strict=True))
    return max(LEAST_SEEN, int(min(draws + len(sources), MOST_IN_A_ROW)))


def read_video(record: Record, sampling: FrameSampling, size: tuple[int, int] | None, limits: DecodeLimits) -> Video:
    """The sampled frames of a record, resized to `size`, or as they are stored. Raises VideoError with its name."""
    assert record.video is not None
    name = record.name if isinstance(record.video, bytes) else None
    return decode(record.video, sampling, size=size, start=record.start, end=record.end, name=name, limits=limits)


def read_images(record: Record, shape: RowShape, max_crops: int, limits: DecodeLimits) -> list[ImageCrops]:
    """The crops of a record's images. Raises RecordError for a bad file, with its name, and where rows of this shape
    hold no images.
    """
    images = list(_images(record, limits))  # a bad file is the cause, whatever room there is
    if images and not shape.windows:
        raise RecordError(f"{record.name}: {NO_IMAGES}")
    return [crop_image(image, shape.size, shape.grid, max_crops) for image in images]


def image_sizes(record: Record, limits: DecodeLimits) -> tuple[tuple[int, int], ...]:
    """(height, width) of its images. Raises RecordError for a bad file."""
    return tuple((image.shape[0], image.shape[1]) for image in _images(record, limits))


def _images(record: Record, limits: DecodeLimits) -> Iterator[np.ndarray]:
    return (read_image(image, image_name(record, number), limits) for number, image in enumerate(record.images, 1))


def image_name(record: Record, number: int) -> str | None:
    """What errors call image `number`, from 1; None for one that has a path."""
    return f"{record.name}, image {number}" if isinstance(record.images[number - 1], bytes) else None


def join_pictures(pictures: Sequence[np.ndarray], shape: RowShape) -> np.ndarray:
    """Crops of images and frames of a video, uint8 [n, h, w, 3]; one array stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    return np.concatenate([np.zeros((0, *shape.size, 3), np.uint8), *pictures])
