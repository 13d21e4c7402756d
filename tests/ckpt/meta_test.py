"""Whether a config continues the run that a checkpoint is of."""

import pytest

from sttts_jax.ckpt.meta import ConfigMismatch, build_meta, check_config
from sttts_jax.data.config import DataConfig

LAYOUT = {"shard_count": 1, "row_shards": 1, "processes": 1}


def test_a_config_of_an_earlier_version_is_continued() -> None:
    """Keys that it lacks are no difference at their defaults, and are one at another value."""
    saved = build_meta(step=2, config={"seed": 1, "data": {"rows": 2}}, data_layout=LAYOUT, counters={})
    usual = {"max_pixels": DataConfig.max_pixels, "max_decoded_pixels": DataConfig.max_decoded_pixels}
    check_config(saved, {"seed": 1, "data": {"rows": 2}})
    check_config(saved, {"seed": 1, "data": {"rows": 2, **usual}})
    with pytest.raises(ConfigMismatch, match=r"(?s)1 keys differ.*data.max_pixels +89478485 +7"):
        check_config(saved, {"seed": 1, "data": {"rows": 2, **usual, "max_pixels": 7}})
