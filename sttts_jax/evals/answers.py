"""Rules that several benchmarks share: from the text of an answer to right, wrong or unreadable. Pure functions."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from sttts_jax.data.styles import shows_options

# What other scripts write for ASCII's quotes and stops.
_MARKS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u02bc\u2032\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u301d\u301e\u301f", '"'),
        **dict.fromkeys("\u300c\u300d\u300e\u300f\u300a\u300b\u3008\u3009", '"'),
        **dict.fromkeys("\u2026\u3002\u06d4\u0964\u0965\u1362\u104b\u17d4\u0589\ua4ff", "."),
        **dict.fromkeys("\u3001\u060c\u1363\u104a\u055d", ","),
        **dict.fromkeys("\u061f\u1367\u055e\u037e\u00bf", "?"),
        **dict.fromkeys("\u055c\u00a1", "!"),
        **dict.fromkeys("\u061b\u1364", ";"),
        # What has no width: blanks, marks of direction, a byte order mark. (Joiners make other words.)
        **dict.fromkeys("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"),
    }
)
_END = " .,!?;:'\""
_START = re.compile(r"(?:[ ,!?;:'\"]|\.{2,}|\.(?!\d))*")  # a stop before a digit is a decimal point
# "B", "b.", "(B)", "B) text", "B: text": surely a letter.
_LETTER = re.compile(r"\s*[(\[]?([A-Za-z])(?:\s*$|[.):\]])")
# "B, dog", "B dog", "B - dog", "B\n\nbecause": one character that is no part of a word, such as "B's" or "C++".
_ALONE = re.compile(r"[\s\"'(\[<]*([A-Za-z])(?!\w|['-]\w|[+#])")
_WORD_BEHIND = re.compile(r"[^\S\n]+\w")
_WORDS = "AI"  # letters that are words as well
# "**B**", "`B`", "$\boxed{B}$", "\(B\)", "<answer>B</answer>", "# B"
_DRESS = re.compile(
    r"\\(?:boxed|text|textbf|mathrm|mathbf)\b|\\[()\[\]]|</?answer>|[*`${}]|(?<!\w)_+|_+(?!\w)|^\s*#+\s"
)
# "Answer: B", "The correct answer is B", "I would choose option B", "So it's B": words before an answer, one of which
# has to say that an answer comes.
_LEAD = re.compile(
    r"\s*(?:(?:so|therefore|thus|hence|that|it\s+is|it's|i\s+(?:would\s+)?(?:think|believe|choose|pick|select|say))(?![\w'])"
    r"[\s,:]*|(?:(?:the|my|your|final|correct|best|right|most\s+likely)\s+)*(?:answer|option|choice|letter)(?![\w'])"
    r"(?:\s+(?:is|would\s+be|must\s+be)(?![\w']))?[\s,:=-]*)+",
    re.IGNORECASE,
)
_SAYS = re.compile(r"\b(?:answer|option|choice|letter|choose|pick|select|say|it\s+is|it's)\b", re.IGNORECASE)


def normalised(text: str) -> str:
    """What two equal answers have in common: lower case, one form of Unicode and one width of letters, quotes and stops
    of all scripts as those of ASCII, white space collapsed, no quotes or punctuation at the ends.
    """
    words = " ".join(unicodedata.normalize("NFC", _plain(text).casefold()).split()).rstrip(_END)
    return _START.sub("", words, count=1)


def _plain(text: str) -> str:
    """Composed (NFC), letters of one width, marks of ASCII."""
    return unicodedata.normalize("NFC", "".join(map(_one_width, text))).translate(_MARKS)


def _one_width(character: str) -> str:
    """Full-width letters and half-width kana as the usual ones. (NFKC for all would make a power of ten a number.)"""
    other_width = unicodedata.decomposition(character).startswith(("<wide>", "<narrow>"))
    return unicodedata.normalize("NFKC", character) if other_width else character


def read_option(prediction: str, options: Sequence[str]) -> int | None:
    """Index of the option that is meant. A leading letter decides, whatever follows it; without one the text has to
    equal an option. None if neither gives one.

    What comes before an answer or dresses it is passed over: "Answer: B", "**B**". "A dog" begins with a word, not with
    a letter, unless "dog" is the text of option A.
    """
    texts, said = [normalised(option) for option in options], _plain(prediction)
    bare = _without_lead(_DRESS.sub("", said))
    for text in (said, bare):
        match = _LETTER.match(text)
        index = _index(match[1], options) if match else None
        if index is None and normalised(text) in texts:
            index = texts.index(normalised(text))
        if index is not None:
            return index
    return _lone_letter(bare, options, texts)


def _without_lead(text: str) -> str:
    lead = _LEAD.match(text)
    return text[lead.end() :] if lead and _SAYS.search(lead[0]) else text


def _lone_letter(text: str, options: Sequence[str], texts: Sequence[str]) -> int | None:
    """The option of a letter without a mark behind it. Where a word follows one that is a word itself or is small, the
    rest has to be the text of an option.
    """
    match = _ALONE.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    unsure = match[1] in _WORDS or match[1].islower()
    if unsure and _WORD_BEHIND.match(rest):
        return texts.index(normalised(rest)) if normalised(rest) in texts else None
    return _index(match[1], options)


def _index(letter: str, options: Sequence[str]) -> int | None:
    index = ascii_uppercase.index(letter.upper())
    return index if index < len(options) else None


def judge_multiple_choice(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """Right if the option that is meant is the answer."""
    index = read_option(prediction, meta["options"])
    return None if index is None else normalised(meta["options"][index]) == normalised(meta["answer"])


def judge_short_answer(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """Right if the texts are equal after `normalised`. Where the possible answers are known, another text is None."""
    text, known = normalised(prediction), [normalised(option) for option in meta["options"]]
    if not text or (known and text not in known):
        return None
    return text == normalised(meta["answer"])


def judge_by_style(prediction: str, meta: Mapping[str, Any]) -> bool | None:
    """The rule that belongs to how the question was asked: multiple choice with options, else a short answer."""
    choice = shows_options(meta["style"]) and meta["options"]
    return (judge_multiple_choice if choice else judge_short_answer)(prediction, meta)
