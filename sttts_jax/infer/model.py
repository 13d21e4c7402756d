"""Questions about a video file, images or both, answered by a checkpoint while you wait.

    from sttts_jax.api import open_checkpoint

    model = open_checkpoint("runs/demo/scorer")
    scene = model.watch("clip.mp4", pruned_fraction="0.5", max_frames=64)
    answer = scene.ask("What happens at the end?", say=lambda piece: print(piece, end="", flush=True))
    print(f"{scene.kept_share:.0%} kept, first token after {answer.first_token_s:.2f} s")

A scene is read once; every further question on it costs its own tokens only, and is answered as if it were alone.
Sizes come in steps (see `infer.scene`), so that scenes of about the same size share compiled programs.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sttts_jax.data.crops import ImageCrops, crop_image, read_image
from sttts_jax.data.prompt import build_prefix
from sttts_jax.data.record import Line, Record, Subtitles, check_lines
from sttts_jax.data.subtitles import cut_subtitles, read_subtitles
from sttts_jax.data.video import Video, decode, display_size
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.engine import Engine
from sttts_jax.infer.scene import Scene

MediaFile = str | Path | bytes  # its path, or what is in it


class _Sight(NamedTuple):
    """What is looked at: the fields of a record, and the name in errors and pages."""

    video: MediaFile | None
    images: Sequence[MediaFile]
    start: float | None
    end: float | None
    subtitles: Subtitles
    name: str


class Model:
    """A checkpoint that answers. Programs are kept: scenes of the same sizes share them."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self._engine = checkpoint, Engine(checkpoint)

    def watch(
        self,
        video: MediaFile | None = None,
        *,
        images: Sequence[MediaFile] = (),
        start: float | None = None,
        end: float | None = None,
        subtitles: str | Path | Sequence[Line] = (),
        pruned_fraction: str | float | None = None,
        max_frames: int | None = None,
        max_fps: float | None = None,
        max_crops: int | None = None,
        sampling: str | None = None,
        name: str | None = None,
    ) -> Scene:
        """Reads files into host memory; no device is touched.

        video            its path, or the bytes of the file
        images           come before the video
        start, end       cut a clip out of the video, seconds
        subtitles        a .srt or .vtt file of the whole video, or lines (start, end, text) in its seconds
        pruned_fraction  share of the video's cells to remove, a decimal
        max_frames       of the video at most, and max_fps of them a second; all three as trained where None
        max_crops        most high-resolution tiles of an image, 0 for the whole picture alone; None: 24, if the model's
                         crops are large enough to have margins
        sampling         of frames: "molmo2" or "transformers", see `data.sampling.FrameSampling`; None: as trained
        name             in errors and pages, where a video is bytes

        Raises ValueError, one sentence that names the file, for whatever cannot be used.
        """
        setting = self.checkpoint.exact_setting(pruned_fraction, max_frames, max_fps, max_crops, sampling)
        if isinstance(images, MediaFile):
            raise ValueError(f"images={images!r:.200} must be a list of files; give one as [file]")
        lines = read_subtitles(subtitles) if isinstance(subtitles, str | Path) else check_lines(subtitles)
        name = name or (Path(video).name if isinstance(video, str | Path) else "video" if video else "images")
        return self._scene(_Sight(video, images, start, end, cut_subtitles(lines, start, end), name), setting)

    def watch_record(self, record: Record, setting: Setting) -> Scene:
        """What a record shows, at a setting. Raises RecordError for whatever cannot be used."""
        sight = _Sight(record.video, record.images, record.start, record.end, record.subtitles, record.id)
        return self._scene(sight, setting)

    def _scene(self, sight: _Sight, setting: Setting) -> Scene:
        checkpoint, data = self.checkpoint, self.checkpoint.data
        crops = [self._crops(image, setting.max_crops) for image in sight.images]
        pictures, times, show = [image.crops for image in crops], np.zeros(0), None
        if sight.video is not None:
            sampled = functools.partial(
                decode,
                sight.video,
                checkpoint.frame_sampling(setting),
                start=sight.start,
                end=sight.end,
                name=sight.name if isinstance(sight.video, bytes) else None,
                limits=data.limits,
            )
            shown = functools.partial(display_size, sight.video, sight.name, limits=data.limits)
            seen = sampled(size=data.size)
            pictures, times = [*pictures, seen.frames], seen.times
            show = functools.partial(_show, sampled, shown)
        prefix = build_prefix(checkpoint.tokenizer, times, cells=data.cells, subtitles=sight.subtitles, images=crops)
        pixels = np.concatenate([np.zeros((0, *data.size, 3), np.uint8), *pictures])
        return Scene(self._engine, sight.name, setting, prefix, pixels, times + (sight.start or 0.0), show)

    def _crops(self, image: MediaFile, max_crops: int) -> ImageCrops:
        data = self.checkpoint.data
        return crop_image(read_image(image, None, data.limits), data.size, self.checkpoint.vlm.vit.grid, max_crops)


def _show(sampled: Callable[..., Video], shown: Callable[[], tuple[int, int]]) -> Video:
    return sampled(size=shown())
