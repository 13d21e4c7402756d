"""Everything about the data of a run, in one frozen object."""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

from sttts_jax.data.decode_limits import USUAL_LIMITS, DecodeLimits
from sttts_jax.data.sampling import RULES, FrameSampling
from sttts_jax.data.schema import POOL, RowShape
from sttts_jax.pruning.budget import MOST_FRAMES, as_fraction, n_kept

MAX_SEED = 4_000_000  # every source has seeds of its own, made from this one, of 32 bits
DEFAULT_DATA_DIR = "~/.cache/sttts_jax/data"


@dataclass(frozen=True)
class Source:
    """A dataset and how often it is drawn from.

    name      "shapes_video_qa", with "/300-100-100" for a build of other sizes, or "jsonl:PATH"
    split     "train", "validation", "test", or a part such as "train[:50%]"; a jsonl file is "train"
    """

    name: str
    weight: float = 1.0
    split: str = "train"
    data_dir: str = DEFAULT_DATA_DIR


@dataclass(frozen=True)
class DataConfig:
    """Sources, sampling of frames, crops of images, sizes of a row, and how it is fed.

    sources          what is drawn from, as tuples (name, weight, split, data_dir); see `Source`
    max_frames       of a video
    max_fps          frames a second at most; None: max_frames equal steps
    sampling         of frames: "molmo2", as it was trained, or "transformers", as its processor there does
    max_pixels       of an image or a frame; larger ones are refused before memory is taken for them
    max_decoded_pixels  of all frames that a video makes us decode for those that are looked at; two hours of full HD,
                     decoded from end to end, are the default
    max_crops        tiles of an image, beside the global crop
    frames_per_row   F, frames and crops
    items_per_row    V, most videos and images in a row
    crops_per_row    of F, those that may be crops of images; 0: records with images are refused
    windows_per_row  P, windows of images; 0: as many as the crops can have
    row_length       S, tokens of a row after pruning
    rows             B, of a step, over all processes
    max_messages     branches of a message tree, drawn anew each time; 0 takes all
    seed             of the order and of what is drawn
    bad_share        stop when more of the records seen than this are unusable, 0..1
    cache            keep decoded frames in memory: for small sets seen many times
    threads          of decoding
    prefetch         batches made ahead
    packing_rows     examples from which each row of the batch is filled: more fill better and hold more frames in
                     memory, those of so many examples for every row of a process

    What follows from the model and the pruning, and is no key of a config file: `image_size` and `grid` (patches of a
    frame, which only images need), `cells` (C, LLM tokens of a frame before pruning), `fraction` (k, a decimal in
    quotes).
    """

    sources: tuple[Source, ...]
    max_frames: int = 8
    max_fps: float | None = 2.0
    sampling: str = "molmo2"
    max_pixels: int = USUAL_LIMITS.max_pixels
    max_decoded_pixels: int = USUAL_LIMITS.max_decoded_pixels
    max_crops: int = 8
    image_size: tuple[int, int] | int = 378
    grid: tuple[int, int] = (27, 27)
    cells: int = 81  # 27 x 27 patches in windows of 3 x 3
    fraction: str = "0.5"
    frames_per_row: int = 16
    items_per_row: int = 4
    crops_per_row: int = 0
    windows_per_row: int = 0
    row_length: int = 1024
    rows: int = 8
    max_messages: int = 0
    seed: int = 0
    bad_share: float = 0.1
    cache: bool = False
    threads: int = 2
    prefetch: int = 2
    packing_rows: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", _sources(self.sources))
        if not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        object.__setattr__(self, "grid", tuple(self.grid))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a frame."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def frame_sampling(self) -> FrameSampling:
        """How frames of a video are chosen."""
        return FrameSampling(self.max_frames, self.max_fps, self.sampling)

    @property
    def limits(self) -> DecodeLimits:
        """What one file may cost."""
        return DecodeLimits(self.max_pixels, self.max_decoded_pixels)

    @property
    def row_shape(self) -> RowShape:
        """The static sizes F, V, K, S, U of a row."""
        return RowShape(
            self.frames_per_row,
            self.items_per_row,
            self.row_length,
            str(self.fraction),
            self.cells,
            self.size,
            self.crops_per_row,
            self.windows_per_row or self._windows(self.crops_per_row, self.row_length),
            self.grid,
        )

    def evaluation_shape(
        self,
        max_frames: int | None = None,
        fraction: str | None = None,
        row_length: int | None = None,
        crops: int = 0,
        windows: int = 0,
    ) -> RowShape:
        """One video a row, for evaluation at these or other frames, fraction and length; with room for `crops` of
        images before it, and `windows` of them (0: as many as they can have).
        """
        length = row_length or self.row_length
        return RowShape(
            frames=(self.max_frames if max_frames is None else max_frames) + crops,
            items=1,
            length=length,
            fraction=str(self.fraction if fraction is None else fraction),
            cells=self.cells,
            size=self.size,
            crops=crops,
            windows=windows or self._windows(crops, length),
            grid=self.grid,
        )

    def _windows(self, crops: int, length: int) -> int:
        """The most windows that so many crops can have; tiles have fewer than global crops. Each takes a token."""
        return min(crops * -(-self.grid[0] // POOL[0]) * -(-self.grid[1] // POOL[1]), length)

    def check(self) -> Self:
        """Itself. Raises ValueError with one sentence for the first setting that cannot work."""
        if not self.sources:
            raise ValueError("data.sources is empty; name at least one, such as ('shapes_video_qa', 1.0)")
        for source in self.sources:
            _check_source(source)
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"data.seed={self.seed} must be from 0 to {MAX_SEED}")
        as_fraction(self.fraction, "data.fraction")
        for name in (
            "max_frames",
            "max_pixels",
            "max_decoded_pixels",
            "cells",
            "frames_per_row",
            "items_per_row",
            "row_length",
            "rows",
            "threads",
            "prefetch",
            "packing_rows",
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_messages", "max_crops", "crops_per_row", "windows_per_row"):
            _at_least(name, getattr(self, name), 0)
        if self.sampling not in RULES:
            raise ValueError(f"data.sampling={self.sampling!r} is unknown; choose one of {', '.join(RULES)}")
        if self.max_fps is not None and not 0 < self.max_fps < math.inf:
            raise ValueError(f"data.max_fps={self.max_fps} must be positive and finite, or None for equal steps")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"data.bad_share={self.bad_share} must be a share from 0 to 1")
        if self.frames_per_row > MOST_FRAMES:
            raise ValueError(f"data.frames_per_row={self.frames_per_row} must be at most {MOST_FRAMES:,}")
        if self.max_frames > self.frames_per_row:
            raise ValueError(
                f"data.frames_per_row={self.frames_per_row} cannot hold max_frames={self.max_frames}; raise it"
            )
        if 0 < self.crops_per_row <= self.max_crops:
            raise ValueError(
                f"data.crops_per_row={self.crops_per_row} cannot hold an image of max_crops={self.max_crops} tiles and "
                "the global crop; raise it, or lower max_crops"
            )
        if self.crops_per_row > self.frames_per_row:
            raise ValueError(
                f"data.frames_per_row={self.frames_per_row} cannot hold crops_per_row={self.crops_per_row}; raise it"
            )
        if self.windows_per_row and not self.crops_per_row:
            raise ValueError(
                f"data.windows_per_row={self.windows_per_row} needs crops_per_row above 0; set it, or leave both at 0"
            )
        kept = n_kept(self.max_frames, self.fraction, self.cells) + 2 * self.max_frames
        if kept >= self.row_length:
            raise ValueError(
                f"data.row_length={self.row_length} has no room for text beside the {kept} vision tokens that "
                f"{self.max_frames} frames keep at fraction {self.fraction}; raise either, or lower max_frames"
            )
        return self


def _sources(given: Any) -> tuple[Source, ...]:
    """One source may stand alone, and a name without weight and split. Raises ValueError for what is no source."""
    alone = isinstance(given, str | Source) or (
        isinstance(given, tuple | list) and len(given) > 1 and isinstance(given[1], int | float)
    )
    if alone:
        return (_source(given),)
    if not isinstance(given, tuple | list):
        raise ValueError(f"data.sources={given!r} must be a list of (name, weight, split, data_dir)")
    return tuple(map(_source, given))


def _source(given: Any) -> Source:
    """One of data.sources. A text alone is a name."""
    if isinstance(given, str | Source):
        return Source(given) if isinstance(given, str) else given
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= len(fields(Source)):
        raise ValueError(
            f"data.sources: {given!r} must be (name, weight, split), such as ('shapes_video_qa', 1.0, 'train')"
        )
    return Source(*given)


def _check_source(source: Source) -> None:
    for name in ("name", "split", "data_dir"):
        if not isinstance(getattr(source, name), str):
            raise ValueError(f"data.sources: {source.name} has {name} {getattr(source, name)!r}; give a text")
    if (
        isinstance(source.weight, bool)
        or not isinstance(source.weight, int | float)
        or not 0 < source.weight < math.inf
    ):
        raise ValueError(
            f"data.sources: {source.name} has weight {source.weight!r}; give a positive number, or leave the source out"
        )


def data_config(**settings: Any) -> DataConfig:
    """A checked DataConfig; an unknown setting is named with the known ones."""
    known = [f.name for f in fields(DataConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"data has no setting {', '.join(unknown)}; known are {', '.join(known)}")
    return DataConfig(**settings).check()


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"data.{name}={value!r} must be a whole number from {least} up")
