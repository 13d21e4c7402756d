"""The front door for Python: what it has, that it says so, that it opens quickly, that the commands use it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sttts_jax import api
from sttts_jax.evals.evaluate import Sweep, plan
from sttts_jax.infer.checkpoint import Checkpoint

CLI = Path(api.__file__).parent / "cli"


@pytest.mark.parametrize("name", api.__all__)
def test_every_argument_is_documented(name: str) -> None:
    function = getattr(api, name)
    text = inspect.getdoc(function) or ""
    lines = text.splitlines()
    assert lines and lines[0].endswith((".", ":"))
    missing = [word for word in inspect.signature(function).parameters if word not in text]
    assert not missing, f"{name} does not say what {missing} are"
    assert "Raises " in text, f"{name} does not say what it raises"


def test_importing_it_is_light() -> None:
    code = "import sys, sttts_jax.api; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "numpy", "av"} & set(loaded)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train", {"train"}),
        ("evaluate", {"Report", "evaluate"}),
        ("answer", {"open_checkpoint"}),
        ("score", {"score"}),
        ("convert", {"convert_from_hf", "convert_to_hf"}),
    ],
)
def test_commands_parse_and_call_it(command: str, names: set[str]) -> None:
    tree = ast.parse((CLI / f"{command}.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "api"
    }
    assert used == names <= set(api.__all__)


def test_one_or_several_runs_tasks_and_fractions(checkpoints: dict[str, Checkpoint]) -> None:
    directory = checkpoints["scorer"].directory
    (alone,) = plan(directory, "shapes_video_qa", Sweep(None, 0.3, 4))
    (same,) = plan([directory, directory], ["shapes_video_qa"], Sweep(None, ["0.30", 0.3], [4]))
    assert [setting.fraction for setting in alone.settings] == ["0.3"] == [s.fraction for s in same.settings]
    (usual,) = plan(Path(directory), "shapes_video_qa")
    assert usual.settings == [checkpoints["scorer"].trained]
    (more,) = plan(directory, "shapes_video_qa", Sweep(None, ["0", "0.5"], [2, 4]))
    assert [(s.max_frames, s.fraction) for s in more.settings] == [(2, "0"), (2, "0.5"), (4, "0"), (4, "0.5")]
    unpruned, pruned = plan(
        [checkpoints[name].directory for name in ("none", "scorer")], "shapes_video_qa", Sweep(None, ["0", "0.5"])
    )
    assert [s.fraction for s in unpruned.settings] == ["0"] and len(pruned.settings) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "a batch of 0 rows must be a whole number, at least 1"),
        ({"batch": 2.5}, "a batch of 2.5 rows must be a whole number"),
        ({"limit": True}, "limit True must be at least 1"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be a whole number of at most 64 bits"),
        ({"pruned_fraction": []}, "pruned_fraction is empty; give at least one"),
        ({"max_frames": []}, "max_frames is empty; give at least one"),
        ({"tasks": []}, "tasks is empty; give at least one"),
        ({"tasks": [3]}, "a task must be a name, such as jsonl:PATH, got 3"),
        ({"workdirs": []}, "workdirs is empty; give at least one"),
        ({"limit": 0}, "limit 0 must be at least 1"),
        ({"max_frames": 0}, "must be positive"),
        ({"pruned_fraction": 1.0}, "out of range"),
        ({"max_crops": -1}, "must not be negative"),
        ({"method": "easier"}, "pruning.method='easier' is unknown"),
    ],
)
def test_mistakes_are_one_sentence(
    changes: dict[str, Any], message: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "params", property(lambda self: pytest.fail("weights were loaded")))
    with pytest.raises(ValueError, match=message):
        api.evaluate(**{"workdirs": runs["scorer"], "tasks": "shapes_video_qa", **changes})


def test_a_picture_is_refused_before_anything_is_measured(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "params", property(lambda self: pytest.fail("weights were loaded")))
    picture = api.Report(picture=tmp_path / "kept.png")
    for name, others in (("none", {}), ("scorer", {"pruned_fraction": "0.3"}), ("scorer", {"method": "random"})):
        with pytest.raises(
            ValueError, match="shows a run of method scorer at its trained share .* leave --picture out"
        ):
            api.evaluate(runs[name], "shapes_video_qa", report=picture, **others)
