"""A prompt in one piece, laid out as a training example is: what a prefix and a question have to give together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sttts_jax.data.crops import ImageCrops
from sttts_jax.data.prompt import _assemble, _prefix, build_question
from sttts_jax.data.record import Message
from sttts_jax.data.schema import Example
from sttts_jax.data.tokenizer import Tokenizer


def build_prompt(
    tokenizer: Tokenizer,
    times: Any,
    message: Message,
    *,
    cells: int,
    subtitles: str | Sequence[tuple[float, float, str]] = (),
    images: Sequence[ImageCrops] = (),
) -> Example:
    """The layout of `build_example` up to "assistant\\n": no answer, no targets, nothing that carries loss."""
    prefix, question = _prefix(tokenizer, times, cells, subtitles, images), build_question(tokenizer, message)
    n = len(prefix.ids) + len(question)
    return _assemble(tokenizer, prefix, [question], [np.zeros(n, np.int32)], [np.zeros(n, np.float32)])
