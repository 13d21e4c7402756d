"""A small video VLM that learns to answer questions about made-up mp4 files, in minutes on a laptop's CPU.

    sttts-jax data build shapes_video_qa --style short_answer
    sttts-jax train --config configs/demo.py:method=scorer,k=0.5 --workdir runs/demo/scorer

Arguments: method (scorer, random, easy, reference_tracking, soft_only, none), k (removed share, or several such as
0.3/0.5, of which each step draws one), steps, seed, data_dir.
`bash launch/demo.sh` trains `none`, `scorer` and `random` with equal steps and seed and compares them.
"""

import ml_collections

from sttts_jax.models.presets import preset
from sttts_jax.pruning.budget import n_kept
from sttts_jax.train.config import defaults
from sttts_jax.train.recipe import parse_arg, set_pruning


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config of one run of the demo."""
    args = parse_arg(arg, method="scorer", k="0.5", steps=800, seed=0, data_dir="~/.cache/sttts_jax/data")
    config = defaults()
    config.seed = args.seed
    config.total_steps = args.steps
    config.model.preset = "tiny"

    removed = set_pruning(config, args.method, args.k)
    # With the gradient let through to features that start from nothing, the temporal loss fell to 1e-5 within 760 steps
    # and the scorer dropped the objects that flash: freezing the features is its cheapest answer.
    config.pruning.aux_stop_gradient = True

    config.data.sources = (("shapes_video_qa", 1.0, "train", args.data_dir),)
    config.data.max_frames = 8
    config.data.frames_per_row = 8
    config.data.items_per_row = 1
    config.data.rows = 8
    config.data.max_messages = 5
    # Room for the same text in every run: 165 tokens of time stamps, markers and questions, then what the run keeps.
    config.data.row_length = 165 + n_kept(config.data.max_frames, removed, preset("tiny").vit.cells)
    config.data.seed = args.seed
    config.data.cache = True

    config.optimizer.llm_lr = config.optimizer.vit_lr = config.optimizer.connector_lr = 1e-3
    config.optimizer.scorer_lr = 3e-3  # scores must be good before the rest is: 1e-3 costs seven points of accuracy
    config.optimizer.warmup = 50

    config.checkpoint.every = 400
    config.log.every = 20
    return config
