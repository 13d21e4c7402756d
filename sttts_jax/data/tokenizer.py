"""Text to ids, with Molmo2's vision tokens on top.

    tokenizer = Tokenizer.load("qwen3/", base_size=151936)      # tokenizer.json of a Qwen-style model
    tokenizer.ids["<im_patch>"]                                 # 151938
    tokenizer.bos == tokenizer.eos                              # <|im_end|>, as in Molmo2

The vision tokens take the first ids after the `base_size` rows of the embedding table. They never come out of text:
their names in a question are ordinary characters here, and `prompt` refuses them.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = (
    *("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"),
    *("<frame_start>", "<frame_end>", "<|video|>"),
    *(
        "<|point_0|>",
        "<|point_1|>",
        "<|point_2|>",
        "<|point_3|>",
    ),  # MolmoPoint's four rows, unused here; these names are ours
)
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

    def __init__(self, model: tokenizers.Tokenizer, base_size: int, where: str):
        missing = [t for t in CHAT_TOKENS[1:] if model.token_to_id(t) is None]
        eos = model.token_to_id("<|im_end|>")
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
        self.base_size = base_size
        self.ids = {token: base_size + i for i, token in enumerate(ADDED_TOKENS)}
        self.bos = self.eos = eos
        self._model = model

    @classmethod
    def load(cls, directory: str | Path, base_size: int | None = None) -> "Tokenizer":
        """From a directory with tokenizer.json. `base_size` is needed where neither the tokenizer nor a config beside
        it tells.

        Raises ValueError for a missing or unreadable file, missing chat tokens, or a base_size that does not fit.
        """
        file = Path(directory) / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{file}: no such file; give a directory that holds a tokenizer.json")
        try:
            model = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file}: cannot be read as a tokenizer ({error})") from error
        return cls(model, base_size or _base_size(model, Path(directory), str(file)), str(file))

    @property
    def size(self) -> int:
        """Rows in use: base rows and added tokens."""
        return self.base_size + len(ADDED_TOKENS)

    @cached_property
    def vision_ids(self) -> frozenset[int]:
        """Tokens that see each other in both directions."""
        return frozenset(self.ids[t] for t in VISION_TOKENS)

    @cached_property
    def reserved(self) -> tuple[str, ...]:
        """Strings that no text of a user may contain."""
        return (*CHAT_TOKENS, *ADDED_TOKENS)

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

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json and the base size; `load` needs nothing else."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self._model.save(str(Path(directory) / "tokenizer.json"))
        config = {"base_size": self.base_size, "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (Path(directory) / SIZE_FILE).write_text(json.dumps(config, indent=1))


def train_tokenizer(texts: Iterable[str], directory: str | Path, base_size: int) -> Tokenizer:
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


def _base_size(model: tokenizers.Tokenizer, directory: Path, where: str) -> int:
    """Where the added tokens begin: at their own ids if the file has them, else as a config in the directory says."""
    present = model.token_to_id(ADDED_TOKENS[0])
    if present is not None:
        wrong = [t for i, t in enumerate(ADDED_TOKENS[:10]) if model.token_to_id(t) != present + i]
        if wrong:
            raise ValueError(
                f"{where}: its vision tokens are not in Molmo2's order (see {', '.join(wrong)}); "
                "give Molmo2's own tokenizer or one without them"
            )
        return present
    for name, keys in (
        (SIZE_FILE, ["base_size"]),
        ("config.json", ["text_config", "vocab_size"]),
        ("config.json", ["vocab_size"]),
    ):
        value = json.loads((directory / name).read_text()) if (directory / name).is_file() else None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int):
            return value
    raise ValueError(f"{where}: does not say how many rows the embedding table has; give base_size (151936 for Qwen3)")
