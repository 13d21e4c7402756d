"""The recipe of the STTS paper (arXiv 2603.18004) as a config: what configs/molmo2_*_stts.py and others start from."""

from typing import Any

import ml_collections

from sttts_jax.data.schema import round_up
from sttts_jax.models.overrides import check_keys
from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import as_fraction, row_capacity
from sttts_jax.pruning.config import PruneConfig
from sttts_jax.train.config import defaults

VIDEOS = 2  # examples of full length in a row
ITEMS = 4  # examples in a row, where they are shorter
FRAME_TEXT = 10  # <frame_start>, <frame_end> and a time of up to " 9999.5 ", which is 8 tokens
WORDS = 1610  # questions and answers of a video: with 64 frames, the 2,250 tokens of text of the paper's examples
STEP = 128  # rows are whole multiples, as kernels and devices like them


def parse_arg(arg: str, **spec: Any) -> Any:
    """The argument of `--config FILE.py:a=1,b=x` as a namespace, typed as the defaults in `spec`; unknown names refuse.

    >>> parse_arg("steps=5", steps=100, method="scorer").steps
    5
    """
    values = dict(spec)
    for part in filter(None, arg.split(",")):
        name, equal, text = part.partition("=")
        check_keys("the config argument", {name: None}, list(spec))
        if not equal:
            raise ValueError(f"config argument {part!r} has no value; write {name}=VALUE")
        kind = type(spec[name])
        try:
            values[name] = text.lower() in ("1", "true") if kind is bool else kind(text)
        except ValueError:
            raise ValueError(f"config argument {name}={text!r} must be a {kind.__name__}") from None
    return ml_collections.FrozenConfigDict(values)


def set_pruning(config: ml_collections.ConfigDict, method: str, k: str) -> str:
    """Sets pruning.method and the shares that it removes; returns the one that rows have to hold.

    k: the short form of pruning.fraction, a decimal such as "0.5"; or several such as "0.3/0.5", of which each step
    draws one (pruning.fractions), and evaluation takes the first. Raises ValueError for another share.
    """
    first, *others = shares = tuple(k.split("/"))
    for share in shares:
        as_fraction(share, "k")
    config.pruning.method = method
    config.pruning.fraction = first
    config.pruning.fractions = shares if others else ()
    return PruneConfig(method, first).removed


def row_length(frames: int, k: str, cells: int) -> int:
    """S of rows for VIDEOS videos of `frames` frames and their text, from which k of the cells are removed.

    K + VIDEOS * (FRAME_TEXT * frames + WORDS), rounded up to a multiple of STEP; K is the most cells that up to
    ITEMS videos keep who share the row's frames.
    """
    kept = row_capacity(VIDEOS * frames, k, cells, ITEMS)
    return round_up(kept + VIDEOS * (FRAME_TEXT * frames + WORDS), STEP)


def stts_recipe(arg: str, name: str, init_from: str, steps: int = 6250) -> ml_collections.ConfigDict:
    """The config of a run of the model preset `name` that starts from `init_from`.

    arg: "k=0.5,frames=64,method=scorer,steps=6250,data=data/video_qa.jsonl" with any of them changed. k: see
    `set_pruning`; method=none trains without pruning. data is a file of videos and questions for the source
    "jsonl:PATH".
    """
    args = parse_arg(arg, k="0.5", frames=64, method="scorer", steps=steps, data="data/video_qa.jsonl")
    cells = preset(name).vit.cells
    config = defaults()
    config.total_steps = args.steps
    config.init_from = init_from

    config.model.preset = name  # with a dropout of 0.1 on what blocks of the language model add
    config.model.dtype = "bfloat16"
    config.model.remat = "attention"

    removed = set_pruning(config, args.method, args.k)

    config.data.sources = ((f"jsonl:{args.data}", 1.0, "train"),)
    config.data.max_frames = args.frames
    config.data.max_fps = 2.0
    config.data.frames_per_row = VIDEOS * args.frames
    config.data.items_per_row = ITEMS
    config.data.rows = 64
    config.data.row_length = row_length(args.frames, removed, cells)
    config.data.threads = 8

    # Molmo2 does not train the base table of its input: in a model whose head is tied to it, neither is the head.
    config.optimizer.frozen = ("llm/embedding",)

    config.mesh.data = config.mesh.fsdp = config.mesh.sequence = -1  # any number of chips; see train.config.MeshConfig
    config.checkpoint.every = 250
    config.watchdog.startup_s, config.watchdog.step_s = 3600.0, 900.0
    return config
