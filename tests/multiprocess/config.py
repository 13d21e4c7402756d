"""The config of runs of several processes: a model and videos as small as they can be, deadlines of seconds."""

import ml_collections

from sttts_jax.train.recipe import parse_arg
from tests.tiny import tiny_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Arguments: data_dir, steps."""
    args = parse_arg(arg, data_dir="", steps=4)
    sizes = {"data__max_frames": 2, "data__frames_per_row": 2, "data__row_length": 224, "data__max_messages": 1}
    deadlines = {"watchdog__startup_s": 120.0, "watchdog__step_s": 60.0, "watchdog__save_s": 60.0}
    config = tiny_config(args.data_dir, total_steps=args.steps, **sizes, **deadlines)
    config.model.overrides = ml_collections.ConfigDict({"llm": {"layers": 1}})
    config.distributed.timeout_s, config.distributed.heartbeat_s, config.distributed.shutdown_s = 60, 8.0, 20
    return config
