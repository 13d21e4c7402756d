"""The pages: complete, self-contained, safe to open, small enough to mail, and true to the masks they show."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sttts_jax.evals.accuracy import Accuracy
from sttts_jax.report.charts import Axes, Line, line_chart, thin, ticks
from sttts_jax.report.film import kept_tokens_png, shots, spread
from sttts_jax.report.images import cell_edges, dim_dropped, expand, heat_colours
from sttts_jax.report.page import score_page, training_report
from sttts_jax.report.views import Panel, ReportView, RunView, ScoreView, Turn
from tests.shared_files import VIDEOS, needs_data

MEGABYTE = 1_000_000


def _view(
    frames: int = 6, size: tuple[int, int] = (54, 72), grid: tuple[int, int] = (9, 9), seed: int = 0
) -> ScoreView:
    rng = np.random.default_rng(seed)
    scores = rng.random((frames, *grid)).astype(np.float32)
    keep = scores > 0.5
    keep[0] = True
    pixels = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    return ScoreView("clip.mp4", pixels, np.arange(frames) / 2, keep, 0.5, "scorer", "runs/x, step 10", scores)


def _accuracy(value: float) -> Accuracy:
    return Accuracy(value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100)


def _run(name: str, method: str, **changes: object) -> RunView:
    rows = [{"step": step, "loss_task": 2 / (step + 1), "time/step_s": 0.2} for step in range(400)]
    families = {"order_of_events": _accuracy(0.9), "where": _accuracy(0.8)}
    by_fraction = {0.0: _accuracy(0.9), 0.5: _accuracy(0.88)}
    run = RunView(name, method, 0.5, rows, _accuracy(0.85), families, by_fraction, {0.0: 0.3, 0.5: 0.2}, 0.5)
    return replace(run, **changes)


class _Page(HTMLParser):
    """Tags with their attributes, and whether every opened tag is closed."""

    VOID = {"meta", "img", "input", "br", "line", "path", "rect", "circle"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()


def _check(text: str) -> _Page:
    page = _Page(text)
    assert not page.open
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:image/", "#")), f"<{tag} {name}={value[:60]}>"
    assert not re.search(r"https?:|@import|url\(", text)
    return page


def _film(text: str) -> dict:
    return json.loads(re.search(r'id="film">(.*?)</script>', text, re.S)[1])


def _picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


@pytest.mark.parametrize(
    "view",
    [
        _view(),
        _view(frames=1),
        _view(frames=2, size=(80, 40), grid=(2, 3)),
        _view(frames=40, size=(8, 8)),
        replace(_view(), scores=None, method="random"),
        replace(_view(), scores=np.full((6, 9, 9), 0.5)),
        replace(_view(), keep=np.ones((6, 9, 9), bool), fraction=0.0, method="none"),
        replace(_view(), dialogue=[Turn("Where?", "A", "B"), Turn("Why?", "because")]),
    ],
    ids=["usual", "one-frame", "portrait", "tiny", "no-scores", "flat-scores", "nothing-dropped", "question"],
)
def test_score_page_is_whole_and_self_contained(view: ScoreView) -> None:
    page = _check(score_page(view))
    pictures = [
        attributes for tag, attributes in page.tags if tag == "img" and attributes.get("alt", "").startswith("frame ")
    ]
    assert len(pictures) == len(view.frames)
    assert sum(tag == "a" for tag, _ in page.tags) == len(view.frames)


def test_player_masks_and_shares_are_those_of_the_view() -> None:
    view = _view(frames=5, grid=(4, 5))
    film = _film(score_page(view))
    masks = [np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:20].reshape(4, 5) for text in film["keep"]]
    np.testing.assert_array_equal(masks, view.keep)
    np.testing.assert_allclose(film["shares"], view.shares, atol=1e-4)
    assert len(film["images"]) == len(film["heat"]) == 5 and 0 < film["start"] < 5


def test_headline_counts_are_exact() -> None:
    view = _view(frames=16)
    text = score_page(view)
    assert f"<b>{view.keep.sum():,}</b>" in text and f"<b>{view.keep.size:,}</b>" in text


def test_noisy_long_video_stays_small() -> None:
    view = _view(frames=128, size=(270, 480))  # noise is the worst that JPEG can meet
    assert len(score_page(view)) < 6 * MEGABYTE


def test_text_of_others_cannot_become_markup() -> None:
    evil = '</script><script>alert("x")</script>'
    view = replace(_view(), video=evil, dialogue=[Turn(evil, evil, evil)], checkpoint=evil, facts={evil: evil})
    run = _run(evil, "scorer", families={evil: _accuracy(0.5)})
    report = ReportView(evil, [run], summary=evil, clips=[view], facts={evil: evil}, panels=[Panel("loss", evil)])
    for text in (score_page(view), training_report(report)):
        assert "<script>alert" not in text
        _check(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((6, 4, 4, 3), np.float32)}, r"frames must be uint8 \[F, h, w, 3\]"),
        ({"keep": np.ones((5, 9, 9), bool)}, r"keep must be bool \[6, gh, gw\]"),
        ({"keep": np.ones((6, 9, 9), np.int32)}, "not int32"),
        ({"times": np.arange(3)}, r"times must be \[6\] seconds"),
        ({"scores": np.zeros((6, 3, 3))}, r"scores must be \[6, 9, 9\] like keep"),
        ({"scores": np.full((6, 9, 9), 1.5)}, "after the sigmoid"),
        ({"scores": np.full((6, 9, 9), np.nan)}, "finite"),
    ],
)
def test_views_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(_view(), **change)


def test_training_report_shows_every_run_family_and_clip() -> None:
    runs = [_run("Unpruned", "none", kept_share=1.0), _run("STTS", "scorer"), _run("Random", "random")]
    edges = np.linspace(0, 1, 9)
    runs[1] = replace(runs[1], histogram=(edges, np.arange(8), np.arange(8)[::-1]), facts={"Training": "3 min"})
    clips = [
        replace(_view(), dialogue=[Turn("Where?", answer, "A")], method=m)
        for answer, m in (("A", "scorer"), ("B", "random"))
    ]
    text = training_report(
        ReportView("Three runs", runs, "One sentence.", 0.25, [*clips, _view(frames=3)], facts={"Device": "cpu"})
    )
    page = _check(text)
    for wanted in (
        "Unpruned",
        "STTS",
        "Random",
        "order of events",
        "3 min",
        "guessing gives 25 %",
        "cpu",
        "correct",
        "wrong",
    ):
        assert wanted in text
    charts = {attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"}
    assert {"Accuracy by question family", "Task loss by step", "Seconds a step by step"} <= charts
    assert (
        len([1 for tag, attributes in page.tags if tag == "article"]) == 2
    )  # the two answers to one question stand together
    assert "Auxiliary loss" not in text  # no run logged it


def test_the_step_that_was_compiled_does_not_scale_the_seconds_of_the_others() -> None:
    rows = [
        {"step": step, "time/step_s": 41.0 if step == 1 else 0.2, "rate/tokens_per_s": 15e3} for step in range(1, 9)
    ]
    text = training_report(ReportView("Report", [RunView("a", "none", 0.0, rows)]))
    _check(text)
    assert (
        "41"
        not in re.sub(r"<style>.*?</style>|<path[^>]*>", "", text, flags=re.DOTALL).split("Seconds a step")[1][:3000]
    )
    assert "200 ms" in text and "e+0" not in text and "15 k" in text


def test_training_report_of_a_run_with_nothing_measured() -> None:
    _check(training_report(ReportView("Bare", [RunView("a", "scorer", 0.5), RunView("b", "my_method", 0.5)])))


def test_not_a_number_is_left_out_of_curves() -> None:
    rows = [{"step": i, "loss_task": math.nan if i % 3 else 1.0 / (i + 1)} for i in range(90)]
    text = training_report(ReportView("Gaps", [_run("a", "scorer", metrics=rows)]))
    assert "nan" not in text.split("<main>")[1].lower()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "at least one run"),
        ([_run("a", "none"), _run("a", "scorer")], "different names"),
        ([_run("a", "none", metrics=[{"loss": 1.0}])], "needs a 'step'"),
    ],
)
def test_reports_that_cannot_be_drawn_are_refused(runs: list[RunView], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReportView("x", runs)


def test_dimming_keeps_kept_pixels_and_greys_the_rest() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    keep = np.random.default_rng(2).random((9, 9)) > 0.5
    shown, mask = dim_dropped(frame, keep), expand(keep, 90, 90)
    inside = np.ones((90, 90), bool)
    inside[10::10] = False  # the grid lines
    inside[:, 10::10] = False
    np.testing.assert_array_equal(shown[mask & inside], frame[mask & inside])
    dropped = shown[~mask].astype(int)
    assert dropped.max() < 96 and np.ptp(dropped, axis=1).max() <= 8  # dark and next to colourless


@given(st.integers(1, 60), st.integers(1, 60))
def test_every_pixel_belongs_to_one_cell(cells: int, more: int) -> None:
    edges = cell_edges(cells + more - 1, cells)
    assert edges[0] == 0 and edges[-1] == cells + more - 1 and (np.diff(edges) >= 1).all()


def test_heat_gets_lighter_with_the_score() -> None:
    light = heat_colours(np.linspace(-1, 2, 50), 0.0, 1.0).astype(int).sum(-1)
    assert (np.diff(light) >= 0).all() and light[0] < 20 and light[-1] > 650


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_with_few_round_numbers(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    step = marks[1] - marks[0]
    assert marks[0] <= low + step * 1e-3 and marks[-1] >= low + span - step * 1e-3 and 2 <= len(marks) <= 8


def test_long_curves_are_thinned_without_losing_a_spike() -> None:
    y = np.zeros(10_000)
    y[5_000] = 1000.0
    x, thinned = thin(np.arange(10_000.0), y)
    assert len(x) == len(thinned) <= 240 and thinned.max() > 20


def test_chart_of_one_point() -> None:
    assert "circle" in line_chart([Line("a", "s-scorer", [0], [1.0])], Axes("step"), "one point")


def test_spread_has_both_ends_and_no_more_than_asked() -> None:
    assert (
        spread(100, 8).tolist()[::7] == [0, 99] and spread(3, 8).tolist() == [0, 1, 2] and spread(1, 8).tolist() == [0]
    )


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_readme_picture(frames: int) -> None:
    image = Image.open(io.BytesIO(kept_tokens_png(_view(frames=frames), frames=6, width=900)))
    assert image.format == "PNG" and image.width == 900


def test_package_ships_the_templates() -> None:
    import sttts_jax.report

    folder = Path(sttts_jax.report.__file__).parent / "templates"
    assert {"base.html", "score.html", "training.html", "style.css", "player.js"} <= {
        path.name for path in folder.iterdir()
    }


@needs_data
@pytest.mark.parametrize("name", ["sam2_cups_shell_game.mp4", "bear_vp9_odd_161x121.webm", "rotated_90_3frames.mov"])
def test_real_video(name: str) -> None:
    with av.open(str(VIDEOS / name)) as container:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    picked = spread(len(decoded), 8)
    frames, times = np.stack([decoded[i][1] for i in picked]), np.array([decoded[i][0] for i in picked])
    keep = np.random.default_rng(0).random((len(frames), 9, 9)) > 0.5
    view = ScoreView(name, frames, times, keep, 0.5, "random", "none")
    text = score_page(view)
    _check(text)
    assert len(text) < 2 * MEGABYTE
    strip = _picture(shots(view)[0].image).astype(float)
    mask = expand(keep[0], *strip.shape[:2])
    colourful = np.ptp(strip, axis=2)
    if colourful[mask].mean() > 10:  # a film with colour in it
        assert colourful[~mask].mean() < 0.7 * colourful[mask].mean() + 8
