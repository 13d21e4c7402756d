"""What the command line of `train` takes beyond ml_collections: None, sizes of the model, configs by name."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.cli import train
from sttts_jax.train import shipped
from sttts_jax.train.config import RunConfig
from sttts_jax.train.shipped import config_file, shipped_configs

ROOT = Path(__file__).parents[2]


def _run(*words: str) -> RunConfig:
    return RunConfig.build(train._parse(["--config", "demo:steps=60", "--workdir", "x", *words])[0])


@pytest.mark.parametrize("words", [["--config.data.max_fps=None"], ["--config.data.max_fps", "None"]])
def test_none_where_the_config_offers_it(words: list[str]) -> None:
    assert _run().data.max_fps == 2.0 and _run(*words).data.max_fps is None


def test_none_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="data.rows"):
        _run("--config.data.rows=None")


def test_sizes_of_the_model() -> None:
    words = ["--config.model.overrides.vit.width=32", "--config.model.overrides.llm.layers", "2"]
    words += ["--config.model.overrides.vit.feature_layers=[1,0]", "--config.model.overrides.llm.tied=false"]
    vlm = _run(*words).vlm
    assert (vlm.vit.width, vlm.llm.layers, vlm.vit.feature_layers, vlm.llm.tied) == (32, 2, (1, 0), False)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--config.model.overrides.vit.widht=32", "model.overrides.vit has no key 'widht'; did you mean 'width'"),
        ("--config.model.overrides.vi.width=32", "model.overrides has no key 'vi'; did you mean 'vit'"),
        ("--config.model.overrides.vit=32", "model.overrides.vit=32 must be a mapping"),
        ("--config.model.overrides.vit.width=wide", "must be of the kind of 48"),
        ("--config.model.overrides.vit.width", "has no value"),
        ("--config.data.max_frames=nan", "data.max_frames"),
        ("--config.optimizer.llm_lr=nan", "optimizer.llm_lr=nan must be a finite number"),
    ],
)
def test_mistakes_are_named(word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        _run(word)


def test_a_source_by_its_name_alone() -> None:
    (source,) = _run("--config.data.sources=jsonl:a.jsonl").data.sources
    assert source.name == "jsonl:a.jsonl"


def test_configs_are_found_by_name_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run().total_steps == 60
    assert set(shipped_configs()) == {path.stem for path in (ROOT / "configs").glob("*.py")} >= {"demo"}
    (tmp_path / "mine.py").write_text("")
    assert config_file("mine.py") == Path("mine.py")
    with pytest.raises(ValueError, match="--config dmo: there is no such file; did you mean 'demo'"):
        config_file("dmo")


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "sttts_jax"
    (place / "configs").mkdir(parents=True)
    (place / "configs" / "other.py").write_text("")
    (tmp_path / "configs").mkdir()  # of another package
    (tmp_path / "configs" / "theirs.py").write_text("")
    monkeypatch.setattr(shipped.sttts_jax, "__file__", str(place / "__init__.py"))
    assert shipped_configs() == {"other": place / "configs" / "other.py"}


def test_the_wheel_has_them(tmp_path: Path) -> None:
    builder: Any = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling, which builds the wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"sttts_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")} <= names
