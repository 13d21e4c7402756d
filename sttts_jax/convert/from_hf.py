"""Hugging Face files to an Orbax checkpoint that looks like a run's workdir.

DIR/checkpoints/0   params, and meta with a config that builds the model
DIR/tokenizer       as a run keeps it
DIR/hf              the side files of the source, for the way back
"""

import json
import time
from typing import Any

from etils import epath

from sttts_jax.ckpt import files
from sttts_jax.ckpt.content import tokenizer_digests
from sttts_jax.ckpt.meta import build_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.convert.conversion import Conversion
from sttts_jax.convert.disk import check_room, check_target, copy_files, side_files, whole_directory
from sttts_jax.convert.import_plan import ImportPlan, plan_backbones, plan_molmo2, write_plan
from sttts_jax.data.tokenizer import ADDED_TOKENS, USED, Tokenizer
from sttts_jax.models.config import VlmConfig
from sttts_jax.models.overrides import overrides_of
from sttts_jax.paths import PathLike, as_path
from sttts_jax.train.config import RunConfig, defaults
from sttts_jax.train.kinds import check_seed
from sttts_jax.trees import flatten_mapping

RELEASED = ("molmo2-4b", "molmo2-8b", "molmo2-o-7b")
LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}
COUNTERS = {"skipped": 0, "all_skipped": 0}
FRAMES = 64  # of a video, until a setting says otherwise (STTS, arXiv 2603.18004)
TEXT_TOKENS = 2048
MARKERS = 2  # tokens around the cells of a frame


def convert_from_hf(
    source: PathLike | None,
    target: PathLike,
    *,
    vision: PathLike | None = None,
    llm: PathLike | None = None,
    scorer: PathLike | None = None,
    tokenizer: PathLike | None = None,
    dtype: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> Conversion:
    """Hugging Face safetensors -> a workdir `target` that every command and a config's `init_from` read.

    source     a Molmo2 directory in any of its spellings; None with `vision` (SigLIP 2 of fixed image size) and `llm`
               (Qwen3 or Olmo3), between which a new connector is drawn
    target     local; must not exist, or be empty. It appears when it is whole
    scorer     "fresh" for a new one, or a .safetensors file or directory with one; None takes the source's, if any
    tokenizer  a directory with tokenizer.json; None for that of the source, or of `llm`
    dtype      of all arrays, "float32" or "bfloat16"; None as stored
    seed       of what is fresh
    dry_run    check everything, write nothing

    Everything is checked before anything is written; about one tensor at a time is in memory, and torch is not needed.
    Raises ValueError (of several kinds) or FileNotFoundError, one sentence with what does not fit.
    """
    begun = time.perf_counter()
    check_target(target)
    check_seed(seed)
    plan, place = _planned(source, vision, llm, scorer, dtype, seed)
    check_room(target, plan.nbytes)
    words = source_tokenizer(place, tokenizer, plan.cfg, whole=source is not None)
    config = imported_config(plan)
    RunConfig.build(config)
    if not dry_run:
        kept = [] if source is None else side_files(as_path(source))
        with whole_directory(target) as folder:
            _write(plan, Workdir(folder), config, words, kept)
    return Conversion.of(plan, target, begun, dry_run, fresh=tuple(plan.fresh))


def _planned(
    source: PathLike | None,
    vision: PathLike | None,
    llm: PathLike | None,
    scorer: PathLike | None,
    dtype: str | None,
    seed: int,
) -> tuple[ImportPlan, PathLike]:
    """(plan, the directory whose tokenizer is the model's)."""
    if source is not None and vision is None and llm is None:
        return plan_molmo2(source, scorer, dtype, seed), source
    if source is None and vision is not None and llm is not None:
        return plan_backbones(vision, llm, scorer, dtype, seed), llm
    raise ValueError("give either the directory of a whole model, or both that of its vision tower and that of its llm")


def _write(
    plan: ImportPlan, workdir: Workdir, config: dict[str, Any], tokenizer: Tokenizer, kept: list[epath.Path]
) -> None:
    steps = workdir.checkpoints
    steps.mkdir()
    tokenizer.save(workdir.tokenizer)
    words = tokenizer_digests(workdir)
    meta = build_meta(step=0, config=config, data_layout=LAYOUT, counters=COUNTERS, fresh=plan.fresh, tokenizer=words)
    write_plan(plan, files.step_directory(steps, 0), meta)
    files.record_files(steps, 0)
    if kept:
        copy_files(kept, workdir.hf_files)


def source_tokenizer(source: PathLike, given: PathLike | None, cfg: VlmConfig, whole: bool) -> Tokenizer:
    """The tokenizer `given`, else that beside the model, which of a `whole` Molmo2 must know the added tokens.

    Raises ValueError where it does not fit the model.
    """
    if cfg.llm.extra_vocab < USED:
        raise ValueError(f"the model has {cfg.llm.extra_vocab} rows for added tokens, but Molmo2 uses {USED}")
    place = as_path(source if given is None else given)
    file = place / "tokenizer.json"
    if not file.exists():
        raise ValueError(f"{place} holds no tokenizer.json; give --tokenizer DIR with that of the model")
    tokenizer = Tokenizer.load(place, cfg.llm.vocab)
    if whole and given is None:
        known = {token.get("content") for token in json.loads(file.read_text()).get("added_tokens", [])}
        lacking = [token for token in ADDED_TOKENS[:USED] if token not in known]
        if lacking:
            raise ValueError(
                f"{file} lacks Molmo2's added tokens {', '.join(lacking)}; it belongs to another model: give Molmo2's "
                "with --tokenizer, or one that is meant to get them"
            )
    return tokenizer


def imported_config(plan: ImportPlan) -> dict[str, Any]:
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
