"""The TFDS dataset `shapes_video_qa`: `make_clip` as H.264 mp4 files in ArrayRecord. Needs no TensorFlow.

ShapesVideoQa(data_dir=DIR, config=shapes_config(3000, 300, 600), file_format="array_record").download_and_prepare()
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.sources.shapes_video_qa import Difficulty, make_clip

# Multiples of four: answers stay balanced in every split.
FIRST_SEED = {"train": 0, "validation": 100_000_000, "test": 200_000_000}
SHORT_ANSWER_SHARE = {"both": 0.5, "short_answer": 1.0, "multiple_choice": 0.0}


class ShapesConfig(tfds.core.BuilderConfig):
    """How many clips each split has and how they ask; the name says it too."""

    def __init__(self, train: int, validation: int, test: int, style: str = "both", **kwargs: Any):
        self.sizes = {"train": train, "validation": validation, "test": test}
        self.short_answer_share = SHORT_ANSWER_SHARE[style]
        name = f"{train}-{validation}-{test}" + (f"-{style}" if style != "both" else "")
        super().__init__(name=name, description=f"{self.sizes}, style {style}", **kwargs)


def shapes_config(train: int = 3000, validation: int = 300, test: int = 600, style: str = "both") -> ShapesConfig:
    """Split sizes in clips, and "both", "short_answer" or "multiple_choice". Raises ValueError for another style, and
    unless each size is a positive multiple of four (answers are balanced over blocks of four).
    """
    if style not in SHORT_ANSWER_SHARE:
        raise ValueError(f"style {style!r} of shapes_video_qa must be one of {', '.join(SHORT_ANSWER_SHARE)}")
    for name, size in (("train", train), ("validation", validation), ("test", test)):
        if size < 4 or size % 4:
            raise ValueError(
                f"split {name} of shapes_video_qa has size {size}; give a multiple of 4, over which answers balance"
            )
    return ShapesConfig(train, validation, test, style)


class ShapesVideoQa(tfds.core.GeneratorBasedBuilder):
    """Made-up clips of moving and appearing shapes, with questions in multiple-choice and short-answer form."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [shapes_config()]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        # `options` as a tensor: tfds needs TensorFlow to write a sequence within a sequence.
        qa = {
            "family": text(),
            "question": text(),
            "options": tfds.features.Tensor(shape=(4,), dtype=np.object_),
            "answer": text(),
            "style": text(),
        }
        features = {
            "video_id": text(),
            "video": tfds.features.Tensor(shape=(), dtype=np.object_, doc="the bytes of an mp4 file"),
            "qa": tfds.features.Sequence(qa),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), description=self.__doc__
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # nothing to download
        sizes = self.builder_config.sizes
        return {split: self._generate_examples(FIRST_SEED[split], size) for split, size in sizes.items()}

    def _generate_examples(self, first_seed: int, size: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for seed in range(first_seed, first_seed + size):
            clip = make_clip(seed, Difficulty(short_answer_share=self.builder_config.short_answer_share))
            qa = [
                {
                    "family": q.family,
                    "question": q.question,
                    "options": list(q.options),
                    "answer": q.answer,
                    "style": q.style,
                }
                for q in clip.qa
            ]
            video_id = f"shapes_{seed:09d}"
            yield video_id, {"video_id": video_id, "video": encode_mp4(clip.frames, clip.fps), "qa": qa}
