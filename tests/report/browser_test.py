"""The pages in a real browser: they fit a telephone, are read by keyboard, and put each answer under its question."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sttts_jax.evals.accuracy import Accuracy
from sttts_jax.report.page import score_page, training_report
from sttts_jax.report.views import ReportView, RunView, ScoreView, Turn
from tests.report.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as `apt install chromium` brings it")

PHONE = 390  # pixels
LONG = "a_name_without_any_place_to_break_" * 5 + ".mp4"


def _view(frames: int = 64, **changes: object) -> ScoreView:
    rng = np.random.default_rng(0)
    scores = rng.random((frames, 9, 9)).astype(np.float32)
    keep = scores > 0.5
    keep[0] = True
    pixels = rng.integers(0, 256, (frames, 54, 96, 3), dtype=np.uint8)
    turns = [Turn("Where does it go?", "up"), Turn("Why?", "because " * 40), Turn("W" * 300, "M" * 300, "other")]
    facts = {"Model sees": "378 x 378 pixels a frame, 9 x 9 cells", LONG: LONG}
    view = ScoreView(
        LONG, pixels, np.arange(frames) / 2, keep, 0.5, "scorer", f"/a/{LONG}, step 10", scores, turns, facts
    )
    return replace(view, **changes)


def _report() -> ReportView:
    share = Accuracy(0.85, 0.8, 0.9, 100)
    families = {f"a_family_of_questions_{i}": share for i in range(12)}
    rows = [{"step": step, "loss_task": 2 / (step + 1), "time/step_s": 0.2} for step in range(40)]
    runs = [
        RunView(f"STTS, 50 % removed ({name}{LONG})", "scorer", 0.5, rows, share, families, {0.0: share, 0.5: share})
        for name in "ab"
    ]
    clips = [_view(8, dialogue=[Turn("Where?" * 40, "up" * 100, "down" * 100)])]
    return ReportView(LONG, runs, LONG, 0.25, clips, facts={"Made by": f"sttts-jax evaluate {LONG}", LONG: LONG})


@functools.cache
def _text(name: str) -> str:
    pages = {"score": lambda: score_page(_view()), "one frame": lambda: score_page(_view(1))}
    return pages.get(name, lambda: training_report(_report()))()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


def _page(browser: Browser, folder: Path, text: str, width: int = PHONE) -> None:
    (folder / "page.html").write_text(text)
    browser.open(folder / "page.html", width)


@pytest.mark.parametrize("width", [PHONE, 1200])
@pytest.mark.parametrize("name", ["score", "one frame", "report"])
def test_no_page_is_wider_than_the_window(browser: Browser, tmp_path: Path, name: str, width: int) -> None:
    _page(browser, tmp_path, _text(name), width)
    wide = browser.run("document.documentElement.scrollWidth")
    # Nor does anything stick out of it that cannot be scrolled to.
    outside = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".wide") && e.getClientRects().length
        && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 99))"""
    assert (browser.run(outside), wide <= width) == ([], True)


def test_each_answer_follows_its_question(browser: Browser, tmp_path: Path) -> None:
    _page(browser, tmp_path, _text("score"))
    pairs = browser.run('[...document.querySelectorAll(".dialogue div")].map((d) => d.innerText.split(/\\n+/))')
    assert [question for question, _ in pairs] == ["Where does it go?", "Why?", "W" * 300]
    assert pairs[0][1] == "up" and pairs[2][1].startswith("M" * 300) and pairs[2][1].endswith("wrong, it is other")


def test_all_frames_are_one_tab_stop(browser: Browser, tmp_path: Path) -> None:
    _page(browser, tmp_path, _text("score"))
    stops = []
    for _ in range(8):
        browser.press("Tab")
        stops.append(browser.run("document.activeElement.id || document.activeElement.name || ''"))
    assert stops[:3] == ["mode", "play", "scrub"] and stops.count("scrub") <= 2
    assert not set(stops) - {"mode", "play", "scrub", ""}
    browser.run('document.getElementById("scrub").focus()')
    before = browser.run('Number(document.getElementById("scrub").value)')
    browser.press("ArrowRight")
    assert browser.run('document.getElementById("when").textContent').endswith(f"frame {before + 2} of 64")


@pytest.mark.parametrize("focus", ["document.body", 'document.getElementById("scrub")', "radio", "play"])
def test_space_plays_and_stops(browser: Browser, tmp_path: Path, focus: str) -> None:
    _page(browser, tmp_path, _text("score"))
    names = {"radio": 'document.querySelector("input[name=mode]")', "play": 'document.getElementById("play")'}
    browser.run(f"{names.get(focus, focus)}.focus({{preventScroll: true}})")
    playing = 'document.querySelector(".frames").classList.contains("playing")'
    for wanted in (True, False):
        browser.press(" ")
        assert browser.run(playing) is wanted
    assert browser.run("scrollY") == 0
