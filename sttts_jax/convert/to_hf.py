"""A checkpoint of this package to files for Hugging Face's libraries."""

from typing import Any, cast

from etils import epath

from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.meta import saved_config
from sttts_jax.ckpt.restore import read_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.convert.disk import CONFIG, Summary, check_target, copy_files, side_files
from sttts_jax.convert.export_plan import plan_export, write_export
from sttts_jax.convert.molmo2_config import CELL, ConfigStyle, hf_config, style_of
from sttts_jax.convert.safetensors_files import whole_directory
from sttts_jax.convert.table import Style
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.paths import as_path, read_json, write_json
from sttts_jax.train.config import RunConfig


def export_checkpoint(source: str, target: str, names: str, dtype: str, shard_gb: float, dry_run: bool) -> str:
    """Writes the model, its config.json and its tokenizer. Returns the summary.

    names, dtype: "" as the source's. The side files are those of the checkpoint that this one came from, if any.
    """
    summary = Summary()
    check_target(target, 0)
    if shard_gb <= 0:
        raise ValueError(f"--shard_gb {shard_gb} must be positive")
    step = resolve_step(source)
    config = saved_config(read_meta(step))
    run = RunConfig.build(config)
    workdir = Workdir.of_step(step)
    side = side_folder(workdir, config)
    base = None if side is None else read_json(side / CONFIG)
    style = cast(Style, names or (style_of(base) if base else "hub"))
    spelling: ConfigStyle = "native" if style == "native" else "hub"
    written = hf_config(run.vlm, spelling, base)
    tokenizer = None if side is not None else Tokenizer.load(workdir.tokenizer, run.vlm.llm.vocab)
    plan = plan_export(step, run.vlm, style, dtype)
    check_target(target, plan.nbytes)
    if not dry_run:
        with whole_directory(target) as folder:
            write_export(plan, folder, int(shard_gb * 1e9))
            if side is not None:
                copy_files([file for file in side_files(side) if file.name != CONFIG], folder)
            if tokenizer is not None:
                tokenizer.save_hf(folder)
            write_json(folder / CONFIG, written)
    count = len(plan.model) + len(plan.scorer)
    text = summary.text(count, plan.parameters, plan.nbytes, target, dry_run)
    if run.vlm.vit.cell != CELL:
        text += f"\n{CONFIG} has no place for cells of {run.vlm.vit.cell} patches; read back, it means {CELL}"
    return text


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
        workdir, config = Workdir.of_step(step), saved_config(read_meta(step))
    return None
