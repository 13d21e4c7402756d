"""The README keeps its promises: its example runs, its commands and files exist."""

import re
from pathlib import Path

from sttts_jax.cli.main import COMMANDS, available

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_its_shapes_are_true():
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "sttts_jax.pruning" in code]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 8, 16)
    assert names["tokens"].shape == (2, 64, 9, 64)
    assert names["out"].shape == (2, 64, 9, 4, 16)
    assert names["kept"].mask.sum() == 2 * 64 and names["kept"].mask[:, 0].all()


def test_every_command_of_the_table_exists():
    named = set(re.findall(r"`sttts-jax (\w+)", README))
    assert named == set(available()) <= set(COMMANDS)


def test_files_that_it_names_exist():
    for path in re.findall(r"(?:bash |\]\()((?:launch|configs|tests)/[\w./]+)", README):
        assert (ROOT / path).exists(), path


def test_methods_are_all_named():
    from sttts_jax.pruning.config import METHODS

    for method in METHODS:
        assert f"`{method}`" in README
