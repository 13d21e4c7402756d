"""Layout, targets, weights, positions and segments of an example."""

from pathlib import Path

import numpy as np
import pytest

from sttts_jax.data.prompt import (
    build_example,
    multiple_choice,
    subtitle_text,
    target_text,
    token_weight,
    user_text,
)
from sttts_jax.data.record import Message, RecordError
from sttts_jax.data.sampling import FrameSampling
from sttts_jax.data.schema import PREFIX_SEGMENT, Example
from sttts_jax.data.tokenizer import Tokenizer
from tests.data.whole_prompts import build_prompt

ONE = Message("What is it?", "red", "video_short_answer")
TWO = Message("Which one?", "b", "video_multiple_choice", options=("a", "b", "c"))


def _words(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.tokens, skip_special=False)


def test_layout_of_a_video(tokenizer: Tokenizer) -> None:
    example = build_example(tokenizer, [0, 0.5, 10.04], [ONE], cells=2)
    frame = "<frame_start><im_patch><im_patch><frame_end>"
    assert _words(tokenizer, example) == (
        f"<|im_end|>0.0 {frame} 0.5 {frame} 10.0 {frame}<|im_start|>user\nvideo_short_answer: What is it?<|im_end|>\n"
        "<|im_start|>assistant\nred"
    )
    assert example.frames == 3 and example.tokens[0] == tokenizer.bos
    assert example.cells[example.cells >= 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(example.cells >= 0, example.tokens == tokenizer.ids["<im_patch>"])
    assert example.vision.sum() == 3 * 4


def test_timestamps_questions_and_answers_are_encoded_apart(tokenizer: Tokenizer) -> None:
    example = build_example(tokenizer, [0, 0.5], [ONE], cells=1)
    patch = [tokenizer.ids["<frame_start>"], tokenizer.ids["<im_patch>"], tokenizer.ids["<frame_end>"]]
    user = "<|im_start|>user\nvideo_short_answer: What is it?<|im_end|>\n<|im_start|>assistant\n"
    parts = [[tokenizer.bos], tokenizer.encode("0.0 "), patch, tokenizer.encode(" 0.5 "), patch]
    parts += [tokenizer.encode(user), tokenizer.encode("red")]
    assert example.tokens.tolist() == [i for part in parts for i in part]


@pytest.mark.parametrize(
    ("duration", "cap", "frames", "tokens"),
    [(10, 128, 21, 1848), (60, 128, 121, 10748), (63.5, 128, 128, 11371), (600, 128, 128, 11494), (600, 64, 64, 5746)]
    + [(191.5, 384, 384, 34339), (600, 384, 384, 34488), (3600, 384, 384, 34823)],
)
def test_molmo2_token_counts(real_files: Path, duration: float, cap: int, frames: int, tokens: int) -> None:
    qwen = Tokenizer.load(real_files / "tokenizer", base_size=151_936)
    times = FrameSampling(cap, 2).times(duration)
    with_video, without = (build_prompt(qwen, t, ONE, cells=81) for t in (times, []))
    assert len(times) == frames and len(with_video.tokens) - len(without.tokens) == tokens


def test_a_lone_message(tokenizer: Tokenizer) -> None:
    """Answer "B" and EOS: n = 2, weight sqrt 2 each."""
    example = build_example(tokenizer, [0], [Message("Q", "B", "user_qa")], cells=1)
    assert len(tokenizer.encode("B")) == 1
    lossy = example.weights > 0
    assert lossy.nonzero()[0].tolist() == [len(lossy) - 2, len(lossy) - 1]
    assert example.weights[lossy] == pytest.approx(2**0.5)
    assert example.targets[lossy].tolist() == [*tokenizer.encode("B"), tokenizer.eos]
    assert (example.segment == 0).all() and np.array_equal(example.position, np.arange(len(lossy)))


def test_targets_are_the_next_token(tokenizer: Tokenizer) -> None:
    example = build_example(tokenizer, [0, 1], [ONE, TWO], cells=2)
    lossy = (example.weights > 0).nonzero()[0]
    for i in lossy:
        last = i + 1 == len(example.tokens) or example.segment[i + 1] != example.segment[i]
        assert example.targets[i] == (tokenizer.eos if last else example.tokens[i + 1])
    assert (example.targets[example.weights == 0] == 0).all()


def test_a_message_tree(tokenizer: Tokenizer) -> None:
    """Four messages of one-token answers: weight 2 / sqrt 1 / sqrt 4 = 1, for the token and for its EOS."""
    messages = [Message(q, "B", "user_qa") for q in ("Q", "Why is it", "R", "S")]
    example = build_example(tokenizer, [0], messages, cells=1)
    alone = build_example(tokenizer, [0], messages[1:2], cells=1)
    prefix = int((example.segment == PREFIX_SEGMENT).sum())
    assert set(example.segment[prefix:]) == {0, 1, 2, 3} and (np.diff(example.segment[prefix:]) >= 0).all()
    for branch in range(4):
        mine = example.segment == branch
        assert np.array_equal(example.position[mine], prefix + np.arange(mine.sum()))
        assert example.weights[mine].tolist() == [0] * (mine.sum() - 2) + [1, 1]
        assert example.targets[mine][-1] == tokenizer.eos
        if branch == 1:  # a branch is what it would be alone
            assert np.array_equal(example.tokens[mine], alone.tokens[prefix:])
            assert np.array_equal(example.position[mine], alone.position[prefix:])
    assert np.array_equal(example.tokens[:prefix], alone.tokens[:prefix])


def test_the_tree_rule_of_attention(tokenizer: Tokenizer) -> None:
    """seg[q] <= seg[k] and k <= q: a branch sees the prefix and itself, nothing else."""
    example = build_example(tokenizer, [0], [ONE, TWO], cells=1)
    seg, n = example.segment, np.arange(len(example.segment))
    sees = (seg[:, None] <= seg[None]) & (n[None] <= n[:, None])
    for branch in (0, 1):
        reached = set(np.unique(seg[sees[seg == branch].any(0)]))
        assert reached == {PREFIX_SEGMENT, branch}


@pytest.mark.parametrize(
    ("n", "messages", "weight", "expected"),
    [(2, 1, None, 2**0.5), (1, 4, None, 1), (100, 1, None, 0.2), (4, 9, None, 1 / 3), (7, 3, 0.1, 0.1)],
)
def test_weights(n: int, messages: int, weight: float | None, expected: float) -> None:
    assert token_weight(n, messages, weight) == pytest.approx(expected)


def test_several_turns(tokenizer: Tokenizer) -> None:
    message = Message("Q", "B", "user_qa", follow_ups=(("And?", "C"),))
    example = build_example(tokenizer, [], [message], cells=1)
    assert _words(tokenizer, example) == (
        "<|im_end|><|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nB<|im_end|><|im_end|>\n<|im_start|>user\nAnd?"
        "<|im_end|>\n<|im_start|>assistant\nC"
    )
    said = example.targets[example.weights > 0].tolist()
    assert said == [*tokenizer.encode("B"), tokenizer.eos, *tokenizer.encode("C"), tokenizer.eos]
    assert example.weights[example.weights > 0] == pytest.approx(1.0)  # n = 4


def test_styles_and_multiple_choice() -> None:
    assert user_text(ONE) == "video_short_answer: What is it?" and target_text(ONE) == "red"
    assert user_text(TWO) == "Which one?\nOnly return the correct answer option.\nA. a\nB. b\nC. c"
    assert target_text(TWO) == "B. b"
    renamed = Message("Q", "a", "video_eval_multiple_choice", ("a", "b"))
    assert user_text(renamed) == multiple_choice("Q", ("a", "b")) and target_text(renamed) == "A. a"
    assert user_text(Message("Q", "a", "video_eval_short_answer", ("a", "b"))) == "video_short_answer: Q"
    assert user_text(Message("Q", "a", "eval_short_answer")) == "vqa2: Q"
    assert user_text(Message("Q", "a", "video_long_caption")) == "Q"
    assert user_text(Message("Q", "a", "demo")) == "demo: Q"  # as Molmo2's code does
    with pytest.raises(RecordError, match="the answer 'z' is none of the options"):
        target_text(Message("Q", "z", "video_multiple_choice", ("a", "b")))
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # the tokenizer makes the same of them
    assert target_text(Message("Q", decomposed, "science_qa", ("tea", composed))) == f"B. {composed}"


def test_subtitles_near_a_sampled_frame(tokenizer: Tokenizer) -> None:
    lines = ((0.0, 0.4, "early"), (3.0, 4.0, "between"), (8.5, 9.1, "late"), (11.0, 12.0, "edge"))
    assert subtitle_text(lines, [0, 10]) == "subtitle\n0.0 - 0.4 early\n8.5 - 9.1 late\n11.0 - 12.0 edge\n"
    assert subtitle_text("plain", [0]) == "subtitle\nplain" and subtitle_text((), [0]) == ""
    example = build_example(tokenizer, [0, 10], [ONE, TWO], cells=1, subtitles=lines)
    text = _words(tokenizer, example)
    assert "<frame_end>subtitle\n0.0 - 0.4 early\n" in text and "edge\n<|im_start|>user" in text
    assert (example.segment == PREFIX_SEGMENT).sum() > (example.vision).sum() + 20


def test_a_prompt_is_the_example_up_to_the_answer(tokenizer: Tokenizer) -> None:
    example, prompt = (
        build_example(tokenizer, [0, 1], [TWO], cells=3),
        build_prompt(tokenizer, [0, 1], TWO, cells=3),
    )
    n = len(prompt.tokens)
    for name in ("tokens", "cells", "vision", "segment", "position"):
        assert np.array_equal(getattr(prompt, name), getattr(example, name)[:n])
    assert not prompt.weights.any() and not prompt.targets.any()
    assert tokenizer.decode(prompt.tokens, skip_special=False).endswith("<|im_start|>assistant\n")


def test_branches_that_do_not_fit_are_left_out(tokenizer: Tokenizer) -> None:
    full = build_example(tokenizer, [0], [ONE, TWO, ONE], cells=1)
    two = build_example(tokenizer, [0], [ONE, TWO, ONE], cells=1, limit=len(full.tokens) - 1)
    same = build_example(tokenizer, [0], [ONE, TWO], cells=1)
    assert np.array_equal(two.tokens, same.tokens) and np.array_equal(
        two.weights, same.weights
    )  # M counts what is kept
    with pytest.raises(RecordError, match="its first question ends after the 10 tokens of a row; raise row_length"):
        build_example(tokenizer, [0], [ONE], cells=1, limit=10)


@pytest.mark.parametrize("token", ["<im_patch>", "<|im_end|>", "<|video|>"])
def test_reserved_tokens_in_text_are_refused(tokenizer: Tokenizer, token: str) -> None:
    for message in (Message(f"a {token}", "b", "user_qa"), Message("a", f"b{token}", "user_qa")):
        with pytest.raises(RecordError, match="contains the reserved token"):
            build_example(tokenizer, [0], [message], cells=1)
    with pytest.raises(RecordError, match="contains the reserved token"):
        build_prompt(tokenizer, [0], ONE, cells=1, subtitles=token)


def test_examples_without_content_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecordError, match="it has no messages"):
        build_example(tokenizer, [0], [], cells=1)
    with pytest.raises(RecordError, match="the answer to 'a' is empty"):
        build_example(tokenizer, [0], [Message("a", "", "user_qa")], cells=1)
