"""Who sees whom in a row of several examples and message trees: Molmo2's rule, position ids, and the ids of a chat."""

from pathlib import Path

import numpy as np
import pytest

from sttts_jax.data.packing import Item, fill_row
from sttts_jax.data.prompt import build_example, subtitle_text, user_text
from sttts_jax.data.record import Message
from sttts_jax.data.schema import EXAMPLE_STRIDE, PREFIX_SEGMENT, RowShape
from sttts_jax.data.styles import MULTIPLE_CHOICE_STYLES, PREFIX_FREE_STYLES
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.ops.attention.row_rule import RowRule, mask_rows
from tests.data.whole_prompts import build_prompt

MESSAGES = [
    Message("What is it?", "red", "user_qa"),
    Message("Which?", "b", "user_qa"),
    Message("Why?", "so", "user_qa"),
]
SHAPE = RowShape(frames=8, items=3, length=320, fraction="0", cells=2, size=(4, 4))


def _mask(vision: list[bool] | np.ndarray, example: np.ndarray, segment: np.ndarray | None = None) -> np.ndarray:
    fields = [np.asarray(x)[None] for x in (vision, example, np.zeros_like(example) if segment is None else segment)]
    rule = RowRule.of(*fields)
    return np.asarray(mask_rows(rule, rule))[0]


def _by_hand(vision: np.ndarray, segment: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The rule as Molmo2 states it: [q, k] of a row, whose examples are told apart by their segment ids alone."""
    n = np.arange(len(segment))
    q, k = np.meshgrid(n, n, indexing="ij")
    both = vision[q] & vision[k] & (segment[q] // EXAMPLE_STRIDE == segment[k] // EXAMPLE_STRIDE)
    return real[q] & real[k] & ((k <= q) | both) & (segment[q] <= segment[k])


def test_vision_tokens_see_each_other_and_text_does_not_look_ahead() -> None:
    vision = np.array([False, True, True, False, True, True, False])
    seen = [[0], [0, 1, 2, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3], [*range(6)], [*range(6)], [*range(7)]]
    mask = _mask(vision, np.zeros(7, int))
    assert [row.nonzero()[0].tolist() for row in mask] == seen
    twice = _mask(np.tile(vision, 2), np.repeat([0, 1], 7))
    assert np.array_equal(twice[:7, :7], mask) and np.array_equal(twice[7:, 7:], mask)
    assert not twice[:7, 7:].any() and not twice[7:, :7].any()


def test_a_branch_sees_the_prefix_and_itself() -> None:
    segment = np.array([PREFIX_SEGMENT] * 3 + [0, 0, 1, 1])
    mask = _mask(np.zeros(7, bool), np.zeros(7, int), segment)
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 5, 6]]
    assert [row.nonzero()[0].tolist() for row in mask] == seen


def test_rows_of_trees_and_lone_messages(tokenizer: Tokenizer) -> None:
    """The mask of a packed row is the stated rule; every branch has the positions and the view that it has alone."""
    trees = [(2, MESSAGES), (3, MESSAGES[:1]), (1, MESSAGES[1:])]
    items = []
    for frames, messages in trees:
        example = build_example(tokenizer, np.arange(frames) / 2, messages, cells=2, subtitles="a plain line")
        items.append(Item(example, np.zeros((frames, 4, 4, 3), np.uint8)))
    row = fill_row(items, SHAPE)
    real = row["example"] >= 0
    mask = _mask(row["vision"], row["example"], row["segment"])
    assert np.array_equal(mask, _by_hand(row["vision"], row["segment"], real))
    for number, (frames, messages) in enumerate(trees):
        mine = row["example"] == number
        assert row["position"][mine][0] == 0
        if len(messages) > 1:
            prefix = mine & (row["segment"] == EXAMPLE_STRIDE * number + PREFIX_SEGMENT)
            branches = [mine & (row["segment"] == EXAMPLE_STRIDE * number + b) for b in range(len(messages))]
        else:  # no tree: one segment
            assert set(row["segment"][mine]) == {EXAMPLE_STRIDE * number}
            prefix, branches = np.zeros_like(mine), [mine]
        for branch, message in zip(branches, messages, strict=True):
            alone = build_example(tokenizer, np.arange(frames) / 2, [message], cells=2, subtitles="a plain line")
            own = prefix | branch
            assert np.array_equal(row["tokens"][own], alone.tokens)
            assert np.array_equal(row["position"][own], alone.position)
            assert np.array_equal(mask[np.ix_(own, own)], _mask(alone.vision, np.zeros(len(alone.tokens), int)))
            assert not mask[np.ix_(branch, ~own)].any()
    shorter = build_example(tokenizer, [0], MESSAGES[:2], cells=1)
    start = int((shorter.segment == PREFIX_SEGMENT).sum())
    lengths = [int((shorter.segment == branch).sum()) for branch in (0, 1)]
    expected = [*range(start), *range(start, start + lengths[0]), *range(start, start + lengths[1])]
    assert shorter.position.tolist() == expected


def test_subtitles_are_text_of_the_prefix(tokenizer: Tokenizer) -> None:
    """One encode call after the frames, causal, before every branch; within a second of a frame, both ends included."""
    lines = ((0.0, 2.0, "near"), (2.5, 3.5, "far"), (6.0, 7.0, "at one second"), (8.25, 9.0, "late"))
    text = "subtitle\n0.0 - 2.0 near\n6.0 - 7.0 at one second\n8.2 - 9.0 late\n"
    assert subtitle_text(lines, [0.0, 5.0, 10.0]) == text
    example = build_example(tokenizer, [0.0, 5.0, 10.0], MESSAGES, cells=1, subtitles=lines)
    block = tokenizer.encode(text)
    last = int(example.vision.nonzero()[0][-1]) + 1
    assert example.tokens[last : last + len(block)].tolist() == block
    assert (example.segment[: last + len(block)] == PREFIX_SEGMENT).all()
    assert example.segment[last + len(block)] == 0 and not example.weights[: last + len(block)].any()


@pytest.fixture(scope="module")
def qwen(real_files: Path) -> Tokenizer:
    return Tokenizer.load(real_files / "tokenizer", base_size=151_936)


def test_the_ids_of_a_prompt_of_molmo2(qwen: Tokenizer) -> None:
    message = Message("What is it?", "red", "video_short_answer")
    prompt = build_prompt(qwen, [0, 0.5], message, cells=2)
    user, assistant, line = 872, 77_091, 198
    frame = [151_943, 151_938, 151_938, 151_944]
    words = qwen.encode("video_short_answer: What is it?")
    assert prompt.tokens.tolist() == [
        151_645,
        *(*qwen.encode("0.0 "), *frame, *qwen.encode(" 0.5 "), *frame),
        *(151_644, user, line, *words, 151_645, line, 151_644, assistant, line),
    ]
    talk = Message("Q", "A", "user_qa", follow_ups=(("And?", " A"),))
    example = build_example(qwen, [], [talk], cells=2)
    turn = [151_645, line, 151_644, user, line, *qwen.encode("And?"), 151_645, line, 151_644, assistant, line]
    assert example.tokens.tolist()[-len(turn) - 3 :] == [32, 151_645, *turn, 362]
    assert example.targets[example.weights > 0].tolist() == [32, 151_645, 362, 151_645]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        *((style, "Q") for style in ("user_qa", "text_sft", "video_long_caption", "video_point", "video_count")),
        *((style, "Q") for style in ("video_multiple_choice", "science_qa", "video_eval_multiple_choice")),
        ("video_eval_multiple_choice_w_subtitle", "Q"),
        *((style, f"{style}: Q") for style in ("video_short_answer", "vqa2", "demo", "chart_qa")),
        *(("video_eval_short_answer", "video_short_answer: Q"), ("eval_short_answer", "vqa2: Q")),
    ],
)
def test_style_prefixes(style: str, text: str) -> None:
    assert user_text(Message("Q", "A", style)) == text
    assert MULTIPLE_CHOICE_STYLES < PREFIX_FREE_STYLES
