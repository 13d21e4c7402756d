"""The clips hold what the questions ask, the answers are balanced, and text alone says nothing."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.sources.encode import encode_mp4
from sttts_jax.data.sources.shapes_render import COLORS
from sttts_jax.data.sources.shapes_video_qa import (
    ANSWERS,
    CORNERS,
    QA,
    STYLES,
    Difficulty,
    make_clip,
    make_script,
)
from sttts_jax.data.video import decode

SAMPLED = [0, 4, 8, 12, 16, 20, 24, 27]  # frames shown at 0, 0.5, .., 3.0, 3.5 s


def _answers(seeds: range) -> dict[str, list[QA]]:
    out = defaultdict(list)
    for seed in seeds:
        for index, qa in enumerate(make_script(seed)[1]):
            out[f"{index} {qa.family}"].append(qa)
    return out


def test_a_seed_is_a_clip() -> None:
    one, same, other = make_clip(5), make_clip(5), make_clip(6)
    assert one.frames.dtype == np.uint8 and one.frames.shape == (28, 72, 72, 3)
    assert one.qa == same.qa and np.array_equal(one.frames, same.frames)
    assert not np.array_equal(one.frames, other.frames)
    coded = {encode_mp4(one.frames, one.fps)}
    rng = np.random.default_rng(0)
    for _ in range(30):
        clutter = [rng.integers(0, 255, rng.integers(1000, 200_000), dtype=np.uint8) for _ in range(4)]  # other memory
        coded.add(encode_mp4(same.frames, same.fps))
        del clutter
    assert len(coded) == 1


def test_every_clip_asks_every_family_in_both_styles_overall() -> None:
    styles = Counter()
    for seed in range(60):
        qa = make_script(seed)[1]
        assert {q.family for q in qa} == set(tuple(ANSWERS))
        for q in qa:
            assert sorted(q.options) == sorted(ANSWERS[q.family]) and q.answer in q.options and q.style in STYLES
            styles[q.style] += 1
    assert min(styles.values()) > 0.4 * sum(styles.values())


def test_first_questions_are_exactly_balanced() -> None:
    for key, qas in _answers(range(400, 480)).items():
        if int(key[0]) < len(tuple(ANSWERS)):
            family = qas[0].family
            assert Counter(q.answer for q in qas) == {a: len(qas) // 4 for a in ANSWERS[family]}
            assert Counter(q.options.index(q.answer) for q in qas) == {i: len(qas) // 4 for i in range(4)}


def _shortcuts(q: QA) -> dict[str, tuple[str, ...]]:
    """Ways to look at the text of a question."""
    words = tuple(sorted(q.question.lower().split()))
    return {
        "question": (q.question,),
        "options": (q.question, *q.options),
        "first option": (q.question, q.options[0]),
        "words": words,
    }


@pytest.mark.parametrize("look", ["question", "options", "first option", "words"])
def test_text_alone_does_not_exceed_chance(look: str) -> None:
    """The best answer, and the best letter, for every text seen in training: on new clips they are right a quarter of
    the time.
    """
    seen: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    letters: dict[tuple[str, ...], Counter] = defaultdict(Counter)
    for qas in _answers(range(1200)).values():
        for q in qas:
            seen[q.family, *_shortcuts(q)[look]][q.answer] += 1
            letters[q.family, *_shortcuts(q)[look]][q.options.index(q.answer)] += 1
    right, by_letter, total = Counter(), Counter(), Counter()
    for qas in _answers(range(10_000, 10_800)).values():
        for q in qas:
            key = (q.family, *_shortcuts(q)[look])
            total[q.family] += 1
            right[q.family] += key in seen and seen[key].most_common(1)[0][0] == q.answer
            by_letter[q.family] += key in letters and letters[key].most_common(1)[0][0] == q.options.index(q.answer)
    for family in tuple(ANSWERS):
        bound = 0.25 + 4 * (0.25 * 0.75 / total[family]) ** 0.5  # four standard deviations
        assert right[family] / total[family] < bound, family
        assert by_letter[family] / total[family] < bound, family


def test_the_first_frame_shows_no_event_and_every_event_is_sampled_twice() -> None:
    for seed in range(200):
        script, _ = make_script(seed)
        appearances = []
        for flash in script.flashes:
            shown = [i for i, t in enumerate(SAMPLED) if flash.begin <= t < flash.end]
            assert len(shown) >= 2 and 0 not in shown
            appearances.append(shown[0])
        assert appearances == sorted(set(appearances))  # the order shows in the sampled frames
        assert 0 < script.panel_begin < script.panel_turns <= SAMPLED[-3]  # its last colour shows at least three times
        assert len({f.corner for f in script.flashes}) == len({f.color for f in script.flashes}) == len(script.flashes)
        assert len({f.shape for f in script.flashes}) == 1


def test_questions_tell_what_the_script_says() -> None:
    for seed in range(100):
        script, qa = make_script(seed)
        for q in qa:
            words = q.question
            if q.family == "order":
                assert q.answer == script.flashes[0 if "first" in words else -1].color
            else:
                truth = {
                    "what": script.flashes[0].shape,
                    "where": {"up": "top", "down": "bottom"}.get(script.arms[0], script.arms[0]),
                    "direction": script.direction,
                    "count": str(len(script.flashes)),
                    "color_change": script.panel_color,
                }
                assert q.answer == truth[q.family]


def test_pixels_show_the_script_after_coding() -> None:
    """Colours in the corners and the ball's path, measured in the decoded mp4."""
    for seed in range(6):
        clip, (script, _) = make_clip(seed), make_script(seed)
        video = decode(encode_mp4(clip.frames, clip.fps), FrameSampling(8, 2), size=None)
        assert video.duration == 3.5 and video.times.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
        for flash in script.flashes:
            y, x = (round(36 + s * 23) for s in CORNERS[flash.corner])
            for i, t in enumerate(SAMPLED):
                middle = video.frames[i, y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
                near = np.abs(middle - COLORS[flash.color]).mean() < 45
                assert near == (flash.begin <= t < flash.end), (seed, flash, t, middle)
        sides = {"left": (36, 9), "right": (36, 63), "up": (9, 36), "down": (63, 36)}
        near_panel = video.frames[-1], video.frames[0]
        y, x = sides[script.arms[0]]
        far = [np.abs(f[y - 9 : y + 9, x - 9 : x + 9].astype(int) - COLORS[script.panel_color]) for f in near_panel]
        last, first = (int((r.mean(-1) < 30).sum()) for r in far)
        assert last > 60 and first == 0, (seed, last, first)  # pixels of the panel's last colour, of about 150
        white = (clip.frames.min(-1) > 225).nonzero()
        last, first = ([white[a][white[0] == t].mean() for a in (1, 2)] for t in (27, 0))
        down, right = (b - a for a, b in zip(first, last, strict=True))
        seen = ("down" if down > 0 else "up") if abs(down) > abs(right) else ("right" if right > 0 else "left")
        assert seen == script.direction


def test_the_first_frame_does_not_tell_the_direction() -> None:
    sides = Counter((script.direction, script.hub) for script, _ in map(make_script, range(1600)))
    assert len(sides) == 16 and all(60 < n < 140 for n in sides.values()), sides  # 100 each, 4 standard deviations
    for seed in range(40):
        ball = (make_clip(seed).frames[0].min(-1) > 225).nonzero()
        place = np.asarray([b.mean() + 0.5 for b in ball])
        assert np.abs(place - (36 + 7.2 * np.asarray(make_script(seed)[0].hub))).max() < 2


def test_dull_shapes_do_not_tell_where_the_panel_lights_up() -> None:
    scripts = [make_script(seed)[0] for seed in range(1600)]
    covered = sum(script.arms[0] in script.arms[1:] for script in scripts)
    dull = sum(len(script.arms) - 1 for script in scripts)
    assert abs(covered / dull - 0.25) < 4 * (0.25 * 0.75 / dull) ** 0.5


def test_difficulty_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 1.5 s"):
        for seed in range(4):
            make_script(seed, replace(Difficulty(), seconds=1.5))
    with pytest.raises(ValueError, match="even height"):
        encode_mp4(np.zeros((2, 5, 4, 3), np.uint8), 8)
