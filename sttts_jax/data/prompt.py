"""Token layout, message trees, positions, segments and loss weights, as Molmo2 does them.

    BOS  "0.0 " <frame_start> C x <im_patch> <frame_end>  " 0.5 " <frame_start> .. <frame_end>  [subtitles]
    "<|im_start|>user\\n" [style: ] question "<|im_end|>\\n<|im_start|>assistant\\n"  answer  EOS

Several questions about one video share its prefix: branch 0, branch 1, .. follow it, each seeing the prefix and
itself only:

    token     BOS  V  V | q0 a0 | q1 a1          targets of a branch's last token: EOS
    position   0   1  2 |  3  4 |  3  4          every branch restarts where the prefix ends
    segment   10000 ..  |  0  0 |  1  1          a query sees keys whose segment is no smaller (and no later)

Images come before the video, each as its global crop and, row by row, its large picture; several are numbered:

    BOS  "Image 1" <low_res_im_start> 196 x <im_patch> <im_end> <im_start> (w x <im_patch> <im_col>) .. <im_end> ..

Numbers, timestamps, subtitles, each question and each answer are encoded one by one, so that no merge crosses their
borders.
"""

import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np

from sttts_jax.data.crops import ImageLayout
from sttts_jax.data.record import Line, Message, RecordError
from sttts_jax.data.schema import POOL, PREFIX_SEGMENT, Example
from sttts_jax.data.styles import PREFIX_FREE_STYLES, shows_options, training_style
from sttts_jax.data.tokenizer import RESERVED, Tokenizer

SUBTITLE_REACH = 1.0  # a subtitle is kept when a sampled frame lies this close to it, seconds


def build_example(
    tokenizer: Tokenizer,
    times: Sequence[float] | np.ndarray,
    messages: Sequence[Message],
    *,
    cells: int,
    subtitles: str | Sequence[Line] = (),
    limit: int | None = None,
    images: Sequence[ImageLayout] = (),
) -> Example:
    """A training example: what is seen, then one branch a message. int32 / float32 / bool arrays [n].

    `times` are the sampled times of the frames, none without a video. `limit` is the most tokens, before pruning:
    branches that would pass it are left out with all after them. Raises RecordError where not even the first fits, or
    where a text is unusable.
    """
    prefix = _prefix(tokenizer, times, cells, subtitles, images)
    branches, total = [], len(prefix.ids)
    for message in messages:
        ids, loss = _branch(tokenizer, message)
        if limit is not None and total + len(ids) > limit:
            break
        branches.append((ids, loss, message.weight))
        total += len(ids)
    if not branches:
        what = (
            f"its first question ends after the {limit} tokens of a row; raise row_length"
            if messages
            else "it has no messages"
        )
        raise RecordError(f"cannot be made into an example, {what}")
    targets, weights = [np.zeros(len(prefix.ids), np.int32)], [np.zeros(len(prefix.ids), np.float32)]
    for ids, loss, weight in branches:
        # Whether the NEXT token carries loss; after the last one comes EOS, which does.
        after = np.append(loss[1:], True)
        value = token_weight(int(loss.sum()) + (len(branches) == 1), len(branches), weight)
        targets.append(np.where(after, np.append(ids[1:], tokenizer.eos), 0))
        weights.append(np.where(after, value, 0))
    return _assemble(tokenizer, prefix, [ids for ids, _, _ in branches], targets, weights)


def build_prefix(
    tokenizer: Tokenizer,
    times: Sequence[float] | np.ndarray,
    *,
    cells: int,
    subtitles: str | Sequence[Line] = (),
    images: Sequence[ImageLayout] = (),
) -> Example:
    """What prompts about a video or images have in common: all that stands before the question, every vision token with
    it. Nothing of it carries loss.
    """
    prefix = _prefix(tokenizer, times, cells, subtitles, images)
    n = len(prefix.ids)
    return _assemble(tokenizer, prefix, [], [np.zeros(n, np.int32)], [np.zeros(n, np.float32)])


def build_question(tokenizer: Tokenizer, message: Message) -> np.ndarray:
    """What a question adds to its prefix, int32 [n], up to "assistant\\n": each turn is encoded by itself. Follow-up
    turns are not asked.
    """
    return np.asarray(tokenizer.encode(_user_turn(user_text(message), first=True)), np.int32)


def token_weight(loss_tokens: int, messages: int, weight: float | None = None) -> float:
    """2 / sqrt(n), times 1 / sqrt(M) in a tree of M >= 2 messages; a message's own weight switches both off.

    n counts the EOS of a lone message but, as in Molmo2's code, not the EOS of a tree's branches, which gets the same
    weight all the same.
    """
    if weight is not None:
        return weight
    return 2 / loss_tokens**0.5 / (messages**0.5 if messages >= 2 else 1)


def user_text(message: Message) -> str:
    """The question as the model reads it: style prefix, and the lettered options of a multiple-choice question."""
    style, question = training_style(message.style), message.question
    if shows_options(style) and message.options:
        question = multiple_choice(question, message.options)
    return question if style in PREFIX_FREE_STYLES else f"{style}: {question}"


def target_text(message: Message) -> str:
    """The answer as the model is to say it: "B. text" for multiple choice, where texts that the tokenizer makes the
    same, by their Unicode form, are the same option.
    """
    if not shows_options(message.style) or not message.options:
        return message.answer
    options = [unicodedata.normalize("NFC", option) for option in message.options]
    answer = unicodedata.normalize("NFC", message.answer)
    if answer not in options:
        raise RecordError(f"the answer {message.answer!r} is none of the options {list(message.options)}")
    return option_lines(message.options)[options.index(answer)]


def turns(message: Message) -> list[tuple[str, str]]:
    """(what the model reads, what it is to say) of every turn of a conversation."""
    return [(user_text(message), target_text(message)), *message.follow_ups]


def multiple_choice(question: str, options: Sequence[str]) -> str:
    """Molmo2's standard prompt, always used in evaluation."""
    return "\n".join([question, "Only return the correct answer option.", *option_lines(options)])


def option_lines(options: Sequence[str]) -> list[str]:
    """["A. ..", "B. ..", ..]"""
    return [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]


def subtitle_text(subtitles: str | Sequence[Line], times: Sequence[float] | np.ndarray) -> str:
    """Header and the lines that a sampled frame comes within a second of; a plain string follows the header
    unchanged.
    """
    if isinstance(subtitles, str):
        return f"subtitle\n{subtitles}" if subtitles else ""
    near = near_subtitles(subtitles, times)
    return "subtitle\n" + "".join(f"{a:.1f} - {b:.1f} {text}\n" for a, b, text in near) if subtitles else ""


def near_subtitles(lines: Sequence[Line], times: Sequence[float] | np.ndarray) -> list[Line]:
    """The lines that a sampled frame comes within a second of."""
    at = np.asarray(times, float)
    return [s for s in lines if ((at + SUBTITLE_REACH >= s[0]) & (at - SUBTITLE_REACH <= s[1])).any()]


class _Prefix(NamedTuple):
    """What questions share: ids, for each the cell or window as in `Example` or -1, and the pictures behind them."""

    ids: list[int]
    cells: list[int]
    frames: int
    images: Sequence[ImageLayout]


def _prefix(
    tokenizer: Tokenizer,
    times: Sequence[float] | np.ndarray,
    cells: int,
    subtitles: str | Sequence[Line],
    images: Sequence[ImageLayout],
) -> _Prefix:
    ids, where = [tokenizer.bos], [-1]
    crops = sum(image.count for image in images)
    window = (crops + len(times)) * cells
    for number, image in enumerate(images, 1):
        label = tokenizer.encode(f"Image {number}") if len(images) > 1 else []
        block = _image_block(tokenizer, image)
        ids += label + block
        where += [-1] * len(label)
        for token in block:
            seen = token == tokenizer.ids["<im_patch>"]
            where.append(window if seen else -1)
            window += seen
    patch = [tokenizer.ids["<im_patch>"]] * cells
    for f, time in enumerate(times):
        stamp = tokenizer.encode(f"{time:.1f} " if f == 0 else f" {time:.1f} ")
        ids += [*stamp, tokenizer.ids["<frame_start>"], *patch, tokenizer.ids["<frame_end>"]]
        where += [-1] * (len(stamp) + 1) + list(range((crops + f) * cells, (crops + f + 1) * cells)) + [-1]
    text = subtitle_text(subtitles, times)
    tail = tokenizer.encode(without_reserved(text)) if text else []
    return _Prefix(ids + tail, where + [-1] * len(tail), len(times), images)


def _image_block(tokenizer: Tokenizer, image: ImageLayout) -> list[int]:
    """The global crop without ends of rows, then the large picture with them."""
    patch, end, column = (tokenizer.ids[t] for t in ("<im_patch>", "<im_end>", "<im_col>"))
    block = [tokenizer.ids["<low_res_im_start>"], *[patch] * image.low, end]
    if image.grid is None:
        return block
    rows, columns = image.grid
    return [*block, tokenizer.ids["<im_start>"], *([patch] * columns + [column]) * rows, end]


def _pooling(images: Sequence[ImageLayout]) -> np.ndarray:
    """int32 [P, 4]: windows of all images, their crops counted on from one image to the next."""
    tables, first = [np.zeros((0, POOL[0] * POOL[1]), np.int32)], 0
    for image in images:
        tables.append(np.where(image.pooling >= 0, image.pooling + first, -1))
        first += image.count * image.patches
    return np.concatenate(tables).astype(np.int32)


def _branch(tokenizer: Tokenizer, message: Message) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a conversation without its final EOS, and which of them the model has to say. int32 [n], bool [n]."""
    ids: list[int] = []
    loss: list[bool] = []
    for i, (user, answer) in enumerate(turns(message)):
        if i:
            ids.append(tokenizer.eos)
            loss.append(True)
        asked = tokenizer.encode(_user_turn(user, first=i == 0))
        said = tokenizer.encode(without_reserved(answer))
        if not said:
            raise RecordError(f"the answer to {user!r} is empty")
        ids += asked + said
        loss += [False] * len(asked) + [True] * len(said)
    return np.asarray(ids, np.int32), np.asarray(loss, bool)


def _user_turn(text: str, first: bool) -> str:
    # From the second turn on Molmo2's training text closes the assistant's turn once more, after its EOS.
    closing = "" if first else "<|im_end|>\n"
    return f"{closing}<|im_start|>user\n{without_reserved(text)}<|im_end|>\n<|im_start|>assistant\n"


def without_reserved(text: str) -> str:
    """`text`. Raises RecordError where it contains what only this module may write."""
    for token in RESERVED:
        if token in text:
            raise RecordError(f"the text {text[:60]!r} contains the reserved token {token}; remove it")
    return text


def _assemble(
    tokenizer: Tokenizer,
    prefix: _Prefix,
    branches: Sequence[Sequence[int] | np.ndarray],
    targets: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
) -> Example:
    tree, start = len(branches) > 1, len(prefix.ids)
    lengths = [len(b) for b in branches]
    segment = [
        np.full(start, PREFIX_SEGMENT if tree else 0),
        *(np.full(n, b if tree else 0) for b, n in enumerate(lengths)),
    ]
    position = [np.arange(start), *(start + np.arange(n) for n in lengths)]
    tokens = np.concatenate([prefix.ids, *branches]).astype(np.int32)
    return Example(
        tokens=tokens,
        targets=np.concatenate(targets).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        cells=np.asarray(prefix.cells + [-1] * sum(lengths), np.int32),
        vision=np.isin(tokens, list(tokenizer.vision_ids)),
        segment=np.concatenate(segment).astype(np.int32),
        position=np.concatenate(position).astype(np.int32),
        frames=prefix.frames,
        crops=tuple(image.count for image in prefix.images),
        pooling=_pooling(prefix.images),
    )
