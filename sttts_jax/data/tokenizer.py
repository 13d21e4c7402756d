"""Text to ids, with Molmo2's vision tokens on top.

    tokenizer = Tokenizer.load("qwen3/", base_size=151936)      # tokenizer.json of a Qwen-style model
    tokenizer.ids["<im_patch>"]                                 # 151938
    tokenizer.bos == tokenizer.eos                              # <|im_end|>, as in Molmo2
    tokenizer.save_hf("out/")                                   # for transformers, added tokens in their places

The vision tokens take the first ids after the `base_size` rows of the embedding table. They never come out of text:
their names in a question are ordinary characters here, and `prompt` refuses them.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import tokenizers
from etils import epath

from sttts_jax.paths import PathLike, as_path, read_json, write_text

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = "<|im_end|>"
ADDED_TOKENS = (
    *("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"),
    *("<frame_start>", "<frame_end>", "<|video|>"),
    *("<|points|>", "<|token_index|>", "<|vit_index|>", "<|vit_loc|>"),  # MolmoPoint's, unused here
)
RESERVED = (*CHAT_TOKENS, *ADDED_TOKENS)  # strings that no text of a user may contain
USED = 10  # of them by Molmo2; the first so many are in every Molmo2 tokenizer
VISION_TOKENS = (
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
)
SIZE_FILE = "tokenizer_config.json"
DIGITS_AND_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """`base_size` rows of ordinary tokens, then the added ones."""

    def __init__(self, model: tokenizers.Tokenizer, base_size: int, where: str, bos_token: str | None = None):
        missing = [t for t in CHAT_TOKENS[1:] if model.token_to_id(t) is None]
        eos = model.token_to_id(EOS)
        if missing or eos is None:
            raise ValueError(
                f"{where}: lacks the chat tokens {', '.join(missing)}; give the tokenizer of a Qwen-style chat model"
            )
        ordinary = {i for t, i in model.get_vocab().items() if t not in ADDED_TOKENS}
        if max(ordinary) >= base_size:
            raise ValueError(
                f"{where}: has ids up to {max(ordinary)}, so base_size={base_size} is too small; "
                "give the rows of the embedding table"
            )
        _check_added(model, base_size, where)
        bos = eos if bos_token is None else model.token_to_id(bos_token)
        if bos is None:
            raise ValueError(f"{where}: lacks its own bos_token {bos_token!r}; correct tokenizer_config.json")
        self.base_size = base_size
        self.ids = {token: base_size + i for i, token in enumerate(ADDED_TOKENS)}
        self.bos, self.eos = bos, eos
        self._model = model

    @classmethod
    def load(cls, directory: PathLike, base_size: int | None = None) -> "Tokenizer":
        """From a directory with tokenizer.json. `base_size` is needed where neither the tokenizer nor a config beside
        it tells. A bos_token in tokenizer_config.json begins prompts; without one <|im_end|> does.

        Raises ValueError for a missing or unreadable file, missing chat tokens, a base_size that does not fit, or
        vision tokens at other ids than Molmo2's.
        """
        folder = as_path(directory)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{file}: no such file; give a directory that holds a tokenizer.json")
        try:
            model = tokenizers.Tokenizer.from_str(file.read_text())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file}: cannot be read as a tokenizer ({error})") from error
        bos = _read_json(folder / SIZE_FILE).get("bos_token")
        bos = bos.get("content") if isinstance(bos, dict) else bos
        return cls(model, base_size or _base_size(model, folder, str(file)), str(file), bos)

    @property
    def size(self) -> int:
        """Rows in use: base rows and added tokens."""
        return self.base_size + len(ADDED_TOKENS)

    @cached_property
    def vision_ids(self) -> frozenset[int]:
        """Tokens that see each other in both directions."""
        return frozenset(self.ids[t] for t in VISION_TOKENS)

    def encode(self, text: str) -> list[int]:
        """No BOS or EOS is added; the chat tokens are recognised."""
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of the ids. Added tokens and, by default, chat tokens leave nothing; otherwise their names."""
        names = {i: t for t, i in self.ids.items()}
        parts, run = [], []
        for i in [*map(int, ids), None]:
            if i is not None and i < self.base_size:
                run.append(i)
                continue
            parts.append(self._model.decode(run, skip_special_tokens=skip_special) if run else "")
            parts.append("" if i is None or skip_special else names.get(i, ""))
            run = []
        return "".join(parts)

    def save(self, directory: PathLike) -> None:
        """Writes tokenizer.json and the base size; `load` needs nothing else."""
        _write(directory, self._model, {"base_size": self.base_size, **self._config()})

    def save_hf(self, directory: PathLike) -> None:
        """Writes what transformers' AutoTokenizer loads, the added tokens at `ids`: as Molmo2 does, dummy tokens fill
        the ids up to `base_size`. `load` reads it as well.
        """
        model = tokenizers.Tokenizer.from_str(self._model.to_str())
        held = model.get_vocab(with_added_tokens=True)
        first = max(i for t, i in held.items() if t not in ADDED_TOKENS) + 1
        wanted = {f"|<EXTRA_TOKENS_{i}>|": first + i for i in range(self.base_size - first)} | self.ids
        special = [tokenizers.AddedToken(token, special=True, normalized=False) for token in wanted]
        model.add_special_tokens(special)
        wrong = [token for token, i in wanted.items() if model.token_to_id(token) != i]
        if wrong:  # ids of its own that have gaps
            raise ValueError(
                f"the tokenizer gives {wrong[0]} the id {model.token_to_id(wrong[0])} instead of {wanted[wrong[0]]}, "
                "because its vocabulary has gaps; export with the tokenizer files of the source"
            )
        _write(directory, model, self._config())

    def _config(self) -> dict[str, str]:
        """What transformers wants to know beside tokenizer.json."""
        config = {"eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
        if self._model.token_to_id(CHAT_TOKENS[0]) is not None:
            config["pad_token"] = CHAT_TOKENS[0]
        if self.bos != self.eos:
            config["bos_token"] = str(self._model.id_to_token(self.bos))
        return config


class TextStream:
    """Ids to text, piece by piece: no piece ends inside of a character. Together they are what all ids give at once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def put(self, ids: Sequence[int], last: bool = False) -> str:
        """What can be said now; with `last` all that is left, U+FFFD for bytes that are no character."""
        self._held += ids
        text = self._tokenizer.decode(self._held)
        if text.endswith("\ufffd") and not last:
            return ""
        self._held = []
        return text


def train_tokenizer(texts: Iterable[str], directory: PathLike, base_size: int) -> Tokenizer:
    """A byte-level BPE of at most `base_size` ids with digits one by one, written to `directory`. The same texts give
    the same file.
    """
    if base_size < 256 + len(CHAT_TOKENS):
        raise ValueError(f"base_size={base_size} is too small; byte-level BPE needs at least {256 + len(CHAT_TOKENS)}")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.normalizer = tokenizers.normalizers.NFC()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(DIGITS_AND_WORDS), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=base_size,
        special_tokens=list(CHAT_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(model, base_size, str(directory))
    tokenizer.save(directory)
    return tokenizer


def _check_added(model: tokenizers.Tokenizer, base_size: int, where: str) -> None:
    """Raises ValueError where a vision token is in the file, but not where Molmo2's rows of the embedding table are."""
    places = [model.token_to_id(t) for t in ADDED_TOKENS]
    if all(place is None for place in places):
        return
    wrong = [t for i, t in enumerate(ADDED_TOKENS) if places[i] != base_size + i and (places[i] or i < USED)]
    if wrong:
        raise ValueError(
            f"{where}: its vision tokens are not in Molmo2's order from id {base_size} on (see {', '.join(wrong)}); "
            "give Molmo2's own tokenizer or one without them"
        )


def _write(directory: PathLike, model: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """The tokenizer last: where it is, it is whole."""
    folder = as_path(directory)
    write_text(folder / SIZE_FILE, json.dumps(config, indent=1))
    write_text(folder / "tokenizer.json", model.to_str(pretty=True))


def _base_size(model: tokenizers.Tokenizer, directory: epath.Path, where: str) -> int:
    """Where the added tokens begin: at their own ids if the file has them, else as a config in the directory says."""
    present = model.token_to_id(ADDED_TOKENS[0])
    if present is not None:
        return present
    for name, keys in (
        (SIZE_FILE, ["base_size"]),
        ("config.json", ["text_config", "vocab_size"]),
        ("config.json", ["vocab_size"]),
    ):
        value: object = _read_json(directory / name)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int):
            return value
    raise ValueError(f"{where}: does not say how many rows the embedding table has; give base_size (151936 for Qwen3)")


def _read_json(file: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is no file. Raises ValueError for anything else."""
    value = read_json(file) if file.exists() else {}
    if not isinstance(value, dict):
        raise ValueError(f"{file}: is no JSON object; copy it again")
    return value
