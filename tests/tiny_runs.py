"""One real, tiny training run, and two runs of other methods with the same weights, for the tests of evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.restore import load_params, read_meta
from sttts_jax.data.sources.registry import build
from sttts_jax.train.config import defaults
from sttts_jax.train.main import main as train


def _config(data_dir: Path) -> Any:
    config = defaults()
    config.total_steps = 2
    config.data.sources = (("shapes_video_qa/8-4-8", 1.0, "train", str(data_dir)),)
    config.data.max_frames = config.data.frames_per_row = 4
    config.data.items_per_row = 1
    config.data.row_length = 448
    config.data.threads = 1
    config.optimizer.warmup = 1
    config.log.every = 1
    config.log.histogram_every = 1
    config.log.tensorboard = False
    return config


def _other_method(trained: Path, workdir: Path, method: str) -> None:
    """A workdir of another method: the trained weights without the scorer."""
    meta, params = read_meta(trained), load_params(trained)
    del params["vit"]["scorer"]
    config = json.loads(meta["config"])
    config["pruning"]["method"] = method
    manager = Manager(workdir / "checkpoints", CheckpointConfig())
    manager.save(2, params, {"count": jnp.zeros(())}, None, {**meta, "config": json.dumps(config)})
    manager.close()
    shutil.copytree(trained / "tokenizer", workdir / "tokenizer")
    shutil.copy(trained / "metrics.jsonl", workdir)


def make_runs(root: Path) -> dict[str, Path]:
    """Method -> workdir. The trained one was moved after its training: a workdir is all that evaluation needs."""
    build("shapes_video_qa", str(root / "data"), {"train": 8, "validation": 4, "test": 8})
    train(_config(root / "data"), str(root / "first_place"))
    trained = Path(shutil.move(root / "first_place", root / "scorer"))
    for method in ("none", "random"):
        _other_method(trained, root / method, method)
    return {name: root / name for name in ("scorer", "none", "random")}
