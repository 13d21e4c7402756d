"""The README and the library's page keep their promises: examples run, commands and files exist."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sttts_jax import pruning
from sttts_jax.cli.main import COMMANDS
from sttts_jax.pruning.bias import RESCALES
from sttts_jax.pruning.config import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_command_of_the_table_exists():
    named = set(re.findall(r"`sttts-jax (\w+)", README))
    assert named == set(COMMANDS)


def test_it_leads_to_the_demo_the_tests_and_the_library():
    for needed in ("bash launch/demo.sh", "bash launch/test.sh", "](docs/pruning.md"):
        assert needed in README


LIBRARY = (ROOT / "docs/pruning.md").read_text()


@pytest.fixture(scope="module", name="names")
def _names() -> dict:
    """What the blocks of the library's page leave behind, run in their order as a reader would."""
    blocks = re.findall(r"```python\n(.*?)```", LIBRARY, re.DOTALL)
    assert len(blocks) == 4, "the page's code was not found"
    names: dict = {}
    for code in blocks:
        if "flax import nnx" in code and not _has_nnx():
            continue
        exec(compile(code, "docs/pruning.md", "exec"), names)
    return names


def _has_nnx() -> bool:
    try:
        importlib.import_module("flax.nnx")
    except Exception:  # whatever a JAX that Flax does not know makes it raise
        return False
    return True


def test_the_library_keeps_half_of_the_cells_and_trains_the_scorer(names: dict) -> None:
    mask = np.asarray(names["kept"].mask)
    assert names["tokens"].shape == (2, 64, 9, 64) and np.isfinite(names["aux"])
    assert mask.sum() == 2 * 64 and mask[:, 0].all()
    grads = {name: max(np.abs(g).max() for g in jax.tree.leaves(part)) for name, part in names["grads"].items()}
    assert min(grads.values()) > 0 and set(grads) == {"early", "biased", "late", "scorer"}


def test_the_library_comes_back_to_frames(names: dict) -> None:
    mask = np.asarray(names["kept"].mask)
    assert names["features"].shape == (2, 8, 16, 64) and names["dense"].shape == (2, 8, 144, 64)
    np.testing.assert_array_equal(np.asarray(names["features"] != 0).all(axis=-1), mask)
    cells = names["grid"].to_cells(names["dense"])
    np.testing.assert_array_equal(np.asarray(cells != 0).all(axis=(-2, -1)), mask)


def test_the_library_keeps_images_whole(names: dict) -> None:
    assert names["whole"].mask.all() and names["whole"].ids.shape == (2, 16)
    assert names["mixed"].video.sum() == 6 and names["room"] == 72  # videos of 1 and 5 frames, an image


def test_the_library_in_nnx(names: dict) -> None:
    if not _has_nnx():
        pytest.skip("flax.nnx does not import with this JAX")
    assert names["logits"].shape == (2, 8, 16) and np.isfinite(names["logits"]).all()


@pytest.mark.parametrize("known", [METHODS, RESCALES], ids=["methods", "rescales"])
def test_the_library_names_them_all(known: tuple[str, ...]) -> None:
    assert [name for name in known if f"\n| `{name}` |" not in LIBRARY] == []


def test_the_layouts_of_the_page_exist() -> None:
    layouts = re.findall(r"\n\| `(\w+_layout)`", LIBRARY)
    assert len(layouts) == 3 and all(hasattr(pruning, name) for name in layouts)
