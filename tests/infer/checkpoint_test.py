"""At what a checkpoint is asked."""

import numpy as np
import pytest

from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.infer.checkpoint import Checkpoint, Setting
from sttts_jax.infer.model import Model


def test_frames_are_chosen_as_trained_or_by_another_rule(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["scorer"]
    usual, other = checkpoint.setting(), checkpoint.setting(sampling="transformers")
    assert checkpoint.frame_sampling(usual) == checkpoint.data.frame_sampling
    assert checkpoint.frame_sampling(other) == FrameSampling(usual.max_frames, usual.max_fps, "transformers")
    video = encode_mp4(np.zeros((8, 16, 16, 3), np.uint8), 8)
    seen = [Model(checkpoint).watch(video, max_fps=2, sampling=rule).times.tolist() for rule in (None, "transformers")]
    assert seen == [[0, 0.5, 1], [0, 0.5]]
    with pytest.raises(ValueError, match="sampling='best' is unknown; choose one of molmo2, transformers"):
        Setting("0.5", 4, 2.0, sampling="best")
