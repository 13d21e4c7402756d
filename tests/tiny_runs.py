"""One real, tiny training run, and two runs of other methods with the same weights: workdirs to evaluate."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sttts_jax.ckpt.manager import CheckpointConfig, Manager
from sttts_jax.ckpt.restore import load_params, read_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.train.main import main as train
from tests.tiny import tiny_config

SETTINGS: dict[str, Any] = {
    **{"total_steps": 2, "optimizer__warmup": 1, "log__histogram_every": 1},
    **{"data__max_frames": 4, "data__frames_per_row": 4, "data__row_length": 448},
}


def _other_method(trained: Path, workdir: Path, method: str) -> None:
    """A workdir of another method: the trained weights without the scorer."""
    meta, params = read_meta(trained), load_params(whole_step(trained))
    del params["vit"]["scorer"]
    config = json.loads(meta["config"])
    config["pruning"]["method"] = method
    manager = Manager(workdir / "checkpoints", CheckpointConfig())
    manager.save(2, params, {"count": jnp.zeros(())}, None, {**meta, "config": json.dumps(config)})
    manager.close()
    shutil.copytree(trained / "tokenizer", workdir / "tokenizer")
    shutil.copy(trained / "metrics.jsonl", workdir)


def train_runs(clips: Path, root: Path) -> None:
    """A workdir for each method. The trained one moves after its training: a workdir is all that evaluation needs."""
    train(tiny_config(clips, **SETTINGS), str(root / "first_place"))
    trained = Path(shutil.move(root / "first_place", root / "scorer"))
    for method in ("none", "random"):
        _other_method(trained, root / method, method)
