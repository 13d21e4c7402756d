"""A checkpoint of this package to files for Hugging Face's libraries."""

import math
import time
from typing import Any

from etils import epath

from sttts_jax.ckpt.content import check_tokenizer
from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.meta import saved_config
from sttts_jax.ckpt.restore import read_step_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.convert.conversion import Conversion
from sttts_jax.convert.disk import (
    CONFIG,
    check_room,
    check_target,
    copy_files,
    side_files,
    whole_directory,
)
from sttts_jax.convert.export_plan import plan_export, write_export
from sttts_jax.convert.molmo2_config import CELL, hf_config, style_of
from sttts_jax.convert.safetensors_files import SHARD_BYTES
from sttts_jax.convert.table import as_style
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.models.config import VitConfig
from sttts_jax.paths import PathLike, as_path, read_json, write_json
from sttts_jax.train.config import RunConfig


def convert_to_hf(
    source: PathLike,
    target: PathLike,
    *,
    names: str | None = None,
    dtype: str | None = None,
    shard_gb: float = SHARD_BYTES / 1e9,
    dry_run: bool = False,
) -> Conversion:
    """A checkpoint of ours -> safetensors, config.json and tokenizer in the directory `target`.

    source    a run's workdir, a converted one, or one step of either
    target    local; must not exist, or be empty. It appears when it is whole
    names     of the tensors: "hub" as Molmo2 was released, "native" as transformers saves it, "training" as its
              training code does; None as the files that the checkpoint came from, without any "hub"
    dtype     of all tensors, "float32" or "bfloat16"; None as stored
    shard_gb  size of a file at most, in 1e9 bytes
    dry_run   check everything, write nothing

    LoRA is merged. A scorer goes into a scorer.safetensors beside the model, with "training" names among its tensors.
    The side files are those of the checkpoint that this one came from, if any. Everything is checked before anything is
    written; about one tensor at a time is in memory. Raises ValueError (of several kinds) or FileNotFoundError, one
    sentence with what does not fit.
    """
    begun = time.perf_counter()
    check_target(target)
    if not 0 < shard_gb < math.inf:
        raise ValueError(f"shard_gb {shard_gb} must be positive and finite")
    step = whole_step(source)
    meta, workdir = read_step_meta(step), Workdir.of_step(step)
    check_tokenizer(meta, workdir)
    saved = saved_config(meta)
    vlm = RunConfig.build(saved).vlm
    side = side_folder(workdir, saved)
    base = None if side is None else read_json(side / CONFIG)
    style = as_style(names) if names else style_of(base) if base else "hub"
    plan = plan_export(step, vlm, style, dtype)
    check_room(target, plan.nbytes)
    config = hf_config(vlm, "native" if style == "native" else "hub", base)
    tokenizer = None if side is not None else Tokenizer.load(workdir.tokenizer, vlm.llm.vocab)
    others = [] if side is None else [file for file in side_files(side) if file.name != CONFIG]
    if not dry_run:
        with whole_directory(target) as folder:
            write_export(plan, folder, int(shard_gb * 1e9))
            copy_files(others, folder)
            _save_tokenizer(tokenizer, folder)
            write_json(folder / CONFIG, config)
    return Conversion.of(plan, target, begun, dry_run, warning=_warning(vlm.vit))


def _warning(vit: VitConfig) -> str:
    if vit.cell == CELL:
        return ""
    return f"{CONFIG} has no place for cells of {vit.cell} patches; read back, it means {CELL}"


def side_folder(workdir: Workdir, config: dict[str, Any]) -> epath.Path | None:
    """DIR/hf of the converted checkpoint itself, or of the one that the run started from, or that one's start."""
    for _ in range(16):  # a circle of names would never end
        if (workdir.hf_files / CONFIG).exists():
            return workdir.hf_files
        before = config.get("init_from")
        if not before:
            return None
        try:
            step = resolve_step(as_path(before))
        except FileNotFoundError:
            return None
        workdir, config = Workdir.of_step(step), saved_config(read_step_meta(step))
    return None


def _save_tokenizer(tokenizer: Tokenizer | None, folder: epath.Path) -> None:
    """Where no side files bring one."""
    if tokenizer is not None:
        tokenizer.save_hf(folder)
