"""Hugging Face files to an Orbax checkpoint that looks like a run's workdir.

DIR/checkpoints/0   params, and meta with a config that builds the model
DIR/tokenizer       as a run keeps it
DIR/hf              the side files of the source, for the way back
"""

import json
from dataclasses import dataclass
from typing import Any

from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.convert.disk import Summary, check_target, copy_files, side_files
from sttts_jax.convert.import_plan import ImportPlan, plan_molmo2, plan_parts, write_plan
from sttts_jax.convert.safetensors_files import whole_directory
from sttts_jax.data.tokenizer import ADDED_TOKENS, USED, Tokenizer
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.presets import overrides_of
from sttts_jax.paths import as_path
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.trees import flatten_mapping, param_count

RELEASED = ("molmo2-4b", "molmo2-8b", "molmo2-o-7b")
LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
COUNTERS = {"skipped": 0, "all_skipped": 0}
FRAMES = 64  # of a video, until a setting says otherwise (STTS, arXiv 2603.18004)
TEXT_TOKENS = 2048
MARKERS = 2  # tokens around the cells of a frame


@dataclass(frozen=True)
class Wanted:
    """The arguments of the command, "" where not given."""

    scorer: str = ""
    tokenizer: str = ""
    dtype: str = ""
    seed: int = 0


def import_checkpoint(sources: tuple[str, ...], target: str, wanted: Wanted, dry_run: bool) -> str:
    """`sources`: a Molmo2 directory, or those of a vision tower and of a language model. Returns the summary."""
    summary = Summary()
    check_target(target, 0)
    plan = _plan(sources, wanted)
    check_target(target, plan.nbytes)
    tokenizer = source_tokenizer(sources[-1], wanted.tokenizer, plan.cfg, whole=len(sources) == 1)
    config = run_config(plan)
    RunConfig.build(config)
    if not dry_run:
        meta = build_meta(step=0, config=config, data_layout=LAYOUT, counters=COUNTERS)
        kept = side_files(as_path(sources[0])) if len(sources) == 1 else []
        with whole_directory(target) as folder:
            _write(plan, folder, meta, tokenizer, kept)
    text = summary.text(plan.tensors, param_count(plan.leaves), plan.nbytes, target, dry_run)
    return text + (f"\nfresh: {', '.join(plan.fresh)}" if plan.fresh else "")


def _plan(sources: tuple[str, ...], wanted: Wanted) -> ImportPlan:
    how = wanted.scorer, wanted.dtype, wanted.seed
    if len(sources) == 1:
        return plan_molmo2(sources[0], *how)
    vision, llm = sources
    return plan_parts(vision, llm, *how)


def _write(
    plan: ImportPlan, folder: epath.Path, meta: dict[str, Any], tokenizer: Tokenizer, kept: list[epath.Path]
) -> None:
    workdir = Workdir(folder)
    steps = workdir.checkpoints
    steps.mkdir()
    write_plan(plan, files.step_directory(steps, 0), meta)
    files.record_sizes(steps, 0)
    tokenizer.save(workdir.tokenizer)
    if kept:
        copy_files(kept, workdir.hf_files)


def source_tokenizer(source: str, given: str, cfg: VlmConfig, whole: bool) -> Tokenizer:
    """The tokenizer `given`, else that beside the model, which of a `whole` Molmo2 must know the added tokens.

    Raises ValueError where it does not fit the model.
    """
    if cfg.llm.extra_vocab < USED:
        raise ValueError(f"the model has {cfg.llm.extra_vocab} rows for added tokens, but Molmo2 uses {USED}")
    place = as_path(given or source)
    file = place / "tokenizer.json"
    if not file.exists():
        raise ValueError(f"{place} holds no tokenizer.json; give --tokenizer DIR with that of the model")
    tokenizer = Tokenizer.load(place, cfg.llm.vocab)
    if whole and not given:
        known = {token.get("content") for token in json.loads(file.read_text()).get("added_tokens", [])}
        lacking = [token for token in ADDED_TOKENS[:USED] if token not in known]
        if lacking:
            raise ValueError(
                f"{file} lacks Molmo2's added tokens {', '.join(lacking)}; it belongs to another model: give Molmo2's "
                "with --tokenizer, or one that is meant to get them"
            )
    return tokenizer


def run_config(plan: ImportPlan) -> dict[str, Any]:
    """The config in `meta`: the model by its nearest released one, pruned if there is a scorer, rows of one video."""
    config = defaults()
    overrides = {name: overrides_of(plan.cfg, name) for name in RELEASED}
    nearest = min(RELEASED, key=lambda name: len(flatten_mapping(overrides[name])))
    config.model.preset, config.model.overrides = nearest, overrides[nearest]
    config.model.dtype = "bfloat16" if plan.leaves["llm/embedding"].dtype == "bfloat16" else "float32"
    config.pruning.method = "scorer" if plan.scorer else "none"
    config.data.max_frames = config.data.frames_per_row = FRAMES
    config.data.row_length = FRAMES * (plan.cfg.vit.cells + MARKERS) + TEXT_TOKENS
    return config.to_dict()
