"""A run from its command: its workdir knows where its data lies, whatever the directory it was started from."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from sttts_jax.ckpt.restore import load_params
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.data.config import Source
from sttts_jax.data.sources.registry import open_source
from sttts_jax.infer.open import read_checkpoint
from sttts_jax.train.main import main as train
from sttts_jax.train.main import with_rooted_data
from tests.tiny import tiny_config
from tests.tiny_runs import SETTINGS


def test_a_workdir_goes_on_with_data_that_moved(
    runs: dict[str, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by a relative path, from another directory: the finished run is restored, with nothing left to do."""
    workdir = Path(shutil.copytree(runs["scorer"], tmp_path / "run"))
    shutil.copytree(clips, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    state = train(tiny_config(Path("moved"), **SETTINGS), workdir)
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), load_params(whole_step(workdir)))


def test_the_config_of_a_workdir_has_whole_paths(
    runs: dict[str, Path], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips.parent)
    rooted = with_rooted_data(tiny_config(Path(clips.name)).to_dict())
    assert rooted["data"]["sources"] == (("shapes_video_qa", 1.0, "train", str(clips)),)
    assert with_rooted_data({"seed": 1}) == {"seed": 1}
    monkeypatch.chdir(tmp_path)
    assert len(open_source(Source(*rooted["data"]["sources"][0]))) == 24
    assert len(open_source(read_checkpoint(runs["scorer"]).data.sources[0])) == 24
