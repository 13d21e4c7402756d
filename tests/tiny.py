"""The smallest real run: 24 clips, a few steps; also a program that the kill tests start as a process of its own."""

import sys
from pathlib import Path

import ml_collections

from sttts_jax.api import train
from sttts_jax.data.sources.registry import build
from sttts_jax.train.config import defaults


def build_clips(directory: Path) -> None:
    build("shapes_video_qa", str(directory), {"train": 24, "validation": 4, "test": 8})


def tiny_config(data_dir: Path, **settings) -> ml_collections.ConfigDict:
    """`settings` are dotted keys with __ for the dot."""
    config = defaults()
    config.total_steps = 8
    config.data.sources = (("shapes_video_qa", 1.0, "train", str(data_dir)),)
    config.data.rows, config.data.frames_per_row, config.data.items_per_row = 8, 8, 1
    config.data.max_frames, config.data.row_length, config.data.max_messages = 8, 256, 2
    config.data.cache, config.data.packing_rows = True, 2
    config.optimizer.warmup = 2
    config.optimizer.llm_lr = config.optimizer.vit_lr = config.optimizer.connector_lr = config.optimizer.scorer_lr = (
        1e-3
    )
    config.checkpoint.every, config.log.every, config.log.tensorboard = 2, 1, False
    for key, value in settings.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return config


if __name__ == "__main__":
    data_dir, workdir, steps = sys.argv[1:4]
    train(tiny_config(Path(data_dir), total_steps=int(steps)), workdir)
