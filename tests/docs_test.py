"""docs/ says what the code says, and names only what exists."""

import re
from pathlib import Path

import pytest

from sttts_jax.cli.main import COMMANDS
from tests.config_page import config_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_config_page_is_made_from_the_code() -> None:
    text = (ROOT / "docs/config.md").read_text()
    assert text == config_page(), "run: python -m tests.config_page > docs/config.md"


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    files = re.findall(r"\b((?:configs|launch|tests|sttts_jax|docs)/[\w/]+\.(?:py|sh|md|txt))", text)
    assert not [name for name in files if not (ROOT / name).exists()]
    assert set(re.findall(r"sttts-jax (\w+)", text)) - {"COMMAND"} <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page: Path) -> None:
    for dotted in set(re.findall(r"`(sttts_jax(?:\.\w+)+)", page.read_text())):
        *parts, last = dotted.split(".")
        folder = ROOT.joinpath(*parts)
        module = (folder / f"{last}.py").exists() or (folder / last).is_dir()
        names = folder.with_suffix(".py") if folder.with_suffix(".py").exists() else folder / "__init__.py"
        assert module or re.search(rf"\b{last}\b", names.read_text()), dotted
