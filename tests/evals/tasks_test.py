"""Scorers and the registry: pure functions of an answer and what is known of its question."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.data.prompt import option_lines
from sttts_jax.evals.answers import judge_by_style, normalised, read_option
from sttts_jax.evals.tasks import TASKS, find_task

OPTIONS = ("left", "right", "up", "A ball")
CHOICE = {"style": "video_multiple_choice", "options": OPTIONS, "answer": "right"}
SHORT = {"style": "video_short_answer", "options": OPTIONS, "answer": "right"}
OPEN = {"style": "user_qa", "options": (), "answer": "A red cup."}


@pytest.mark.parametrize(
    ("said", "index"),
    [
        ("B. right", 1),
        ("B", 1),
        ("b.", 1),
        ("(B)", 1),
        (" B) something else", 1),
        ("B: right", 1),
        ("A. right", 0),  # the letter decides
        ("right", 1),
        (" Right. ", 1),
        ("a ball", 3),  # a text, not the letter A
        ("A ball", 3),
        ("A", 0),
        ("B, right", 1),
        ("B right", 1),
        ("B - right", 1),
        ("B\n\nbecause it goes there", 1),
        ("B because it goes there", 1),
        ("A\n\nbecause it goes there", 0),
        ("**B**", 1),
        ("**Answer:** B", 1),
        ("Answer: B", 1),
        ("Answer: B. left", 1),
        ("Answer: right", 1),
        ("The answer is B.", 1),
        ("So the correct option is (B)", 1),
        ("I would choose option B.", 1),
        ("It's B", 1),
        ("$\\boxed{B}$", 1),
        ("\\(B\\)", 1),
        ("<answer>B</answer>", 1),
        ("\ufeffB\u200b", 1),  # marks without width
        ('"B"', 1),
        ("`B`", 1),
        ("\uff22", 1),  # full-width
        ("\uff08B\uff09", 1),
        ("B\u3001right", 1),
        ("B\uff1aright", 1),
        ("\u300cright\u300d", 1),
        ("b right", 1),
        ("a left", 0),  # the text of option A: its letter
        ("a right", 1),  # an article
        ("A red ball", None),  # a word and not the letter A
        ("b or not b", None),
        ("B's ball", None),
        ("C++", None),
        ("I see nothing", None),
        ("Answer", None),
        ("The answer is unknown", None),
        ("E. right", None),  # no such option, and the whole is not a text of one
        ("the right one", None),
        ("", None),
        ("42", None),
    ],
)
def test_which_option_is_meant(said: str, index: int | None) -> None:
    assert read_option(said, OPTIONS) == index


@pytest.mark.parametrize(
    ("meta", "said", "verdict"),
    [
        (CHOICE, "B. right", True),
        (CHOICE, "right", True),
        (CHOICE, "C. right", False),
        (CHOICE, "left", False),
        (CHOICE, "no idea", None),
        (SHORT, "Right.", True),
        (SHORT, "left", False),
        (SHORT, "B", None),  # asked for a word, a letter names nothing
        (SHORT, "", None),
        (OPEN, "a  red cup", True),
        (OPEN, "a cup", False),
        (OPEN, " . ", None),
        ({**OPEN, "answer": "caf\u00e9"}, "cafe\u0301", True),
        ({**OPEN, "answer": "Zu\u0308rich"}, "z\u00fcrich", True),
        ({**OPEN, "answer": "red"}, "\uff32\uff25\uff24\uff0e", True),
        ({**OPEN, "answer": "red"}, "\u201cred\u201d", True),
        ({**OPEN, "answer": "red"}, "\u300cred\u300d\u3002", True),
        ({**OPEN, "answer": "\u30ab\u30d5\u30a7"}, "\uff76\uff8c\uff6a", True),
        ({**OPEN, "answer": "it's"}, "It\u2019s\u2026", True),
        ({**OPEN, "answer": "102"}, "10\u00b2", False),
        ({**OPEN, "answer": "50"}, "50%", False),
        ({**OPEN, "answer": "5"}, ".5", False),
        ({**OPEN, "answer": "0.5"}, " ...0.5. ", True),
        ({**CHOICE, "options": ("cafe\u0301", "tea"), "answer": "caf\u00e9"}, "A", True),
        ({**CHOICE, "style": "video_eval_multiple_choice"}, "B", True),
        ({**CHOICE, "options": ()}, "right", True),  # multiple choice without options is a short answer
    ],
)
def test_verdicts(meta: dict, said: str, verdict: bool | None) -> None:
    assert judge_by_style(said, meta) is verdict


@given(st.lists(st.text(min_size=1, max_size=9), min_size=2, max_size=8, unique_by=normalised), st.integers(0, 7))
def test_the_target_of_an_option_is_always_read_as_that_option(options: list[str], pick: int) -> None:
    index = pick % len(options)
    assert read_option(option_lines(options)[index], options) == index


@given(st.text(max_size=30))
def test_any_text_gets_a_verdict(said: str) -> None:
    assert all(judge_by_style(said, meta) in (True, False, None) for meta in (CHOICE, SHORT, OPEN))


def test_registry() -> None:
    assert find_task("shapes_video_qa") is TASKS["shapes_video_qa"]
    assert find_task("shapes_video_qa").split == "test"
    assert find_task("shapes_video_qa:train[:50%]").split == "train[:50%]"
    for name, source, split in (
        ("jsonl:a/b.jsonl", "jsonl:a/b.jsonl", ""),
        ("jsonl:a:b.jsonl:train[90%:]", "jsonl:a:b.jsonl", "train[90%:]"),
        ("jsonl:b.jsonl:train", "jsonl:b.jsonl", "train"),
        ("jsonl:a:test", "jsonl:a:test", ""),
    ):
        task = find_task(name)
        assert (task.name, task.source, task.split) == (name, source, split)


@pytest.mark.parametrize("name", ["shape_video_qa", "mvbench", "jsonl", "jsonl:", ""])
def test_unknown_tasks_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="there is no task"):
        find_task(name)
