"""The layout of a run's folder is part of the contract: reports, resumes and other programs find files by it."""

from pathlib import Path

from sttts_jax.ckpt import files
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.paths import as_path


def test_names_are_those_of_earlier_runs(tmp_path: Path) -> None:
    workdir, root = Workdir(tmp_path), as_path(tmp_path)
    assert workdir.root == root
    assert workdir.checkpoints == root / "checkpoints"
    assert workdir.tokenizer == root / "tokenizer"
    assert workdir.metrics == root / "metrics.jsonl"
    assert workdir.tensorboard == root / "tensorboard"
    assert workdir.profile == root / "profile"
    assert workdir.hf_files == root / "hf"
    assert workdir.evaluations == root / "eval"


def test_a_step_tells_its_workdir(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    assert Workdir.of_step(files.step_directory(workdir.checkpoints, 12)) == workdir


def test_nothing_is_made(tmp_path: Path) -> None:
    assert not Workdir(tmp_path / "run").metrics.exists()
    assert not list(tmp_path.iterdir())


def test_steps_are_found_in_the_directory_and_in_its_checkpoints(tmp_path: Path) -> None:
    assert files.directories_of_steps(tmp_path) == []
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert files.directories_of_steps(tmp_path) == [Workdir(tmp_path).checkpoints]
    assert files.directories_of_steps(tmp_path / "checkpoints") == [Workdir(tmp_path).checkpoints]
