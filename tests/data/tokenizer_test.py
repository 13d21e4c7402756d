"""Ids of text and of the vision tokens."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from sttts_jax.data.tokenizer import ADDED_TOKENS, VISION_TOKENS, TextStream, Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def qwen(real_files: Path) -> Tokenizer:
    return Tokenizer.load(real_files / "tokenizer", base_size=151_936)


def test_qwen_golden_ids(real_files: Path, qwen: Tokenizer) -> None:
    golden = json.loads((real_files / "tokenizer" / "golden_ids.json").read_text())
    assert len(golden) == 3
    for case in golden:
        assert qwen.encode(case["text"]) == case["input_ids"]
        assert qwen.decode(case["input_ids"]) == case["text"]


def test_molmo2_ids_on_qwen(qwen: Tokenizer) -> None:
    assert qwen.bos == qwen.eos == 151_645
    expected = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"]
    expected += ["<frame_start>", "<frame_end>", "<|video|>"]
    assert [qwen.ids[t] for t in expected] == list(range(151_936, 151_946))
    assert qwen.size == 151_950 and len(qwen.vision_ids) == 8
    assert qwen.ids["<|image|>"] not in qwen.vision_ids and qwen.ids["<|video|>"] not in qwen.vision_ids
    assert [len(qwen.encode(t)) for t in ("0.0 ", " 0.5 ", " 10.5 ", " 191.5 ")] == [4, 5, 6, 7]


def test_vision_tokens_never_come_out_of_text(tokenizer: Tokenizer) -> None:
    for token in ADDED_TOKENS:
        assert max(tokenizer.encode(f"a {token} b")) < tokenizer.base_size


def test_small_tokenizer_round_trips_and_splits_digits(tokenizer: Tokenizer) -> None:
    for text in ("What color did the panel turn?", "naïve 😀\n\ttabs", "00:15", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode(" appeared")) == 1  # learned
    assert tokenizer.encode("<|im_start|>user\n")[0] == tokenizer.encode("<|im_start|>")[0]
    assert len({tokenizer.ids[t] for t in VISION_TOKENS}) == 8


def test_decoding_added_and_chat_tokens(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("red"), tokenizer.ids["<im_patch>"], *tokenizer.encode(" blue"), tokenizer.eos]
    assert tokenizer.decode(ids) == "red blue"
    assert tokenizer.decode(ids, skip_special=False) == "red<im_patch> blue<|im_end|>"


def test_training_is_reproducible_and_loads_back(tmp_path: Path) -> None:
    texts = ["one two three two three"] * 5
    first = train_tokenizer(texts, tmp_path / "a", 300)
    train_tokenizer(texts, tmp_path / "b", 300)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    again = Tokenizer.load(tmp_path / "a")
    assert again.base_size == 300 and again.ids == first.ids and again.encode("two three") == first.encode("two three")


def test_base_size_comes_from_a_model_config_beside_it(tmp_path: Path) -> None:
    train_tokenizer(["x"], tmp_path, 300)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="give base_size .151936 for Qwen3."):
        Tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 320}}))
    assert Tokenizer.load(tmp_path).base_size == 320


def test_a_tokenizer_that_has_the_vision_tokens_tells_where_they_begin(tmp_path: Path) -> None:
    train_tokenizer(["x"], tmp_path, 300)
    model = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    filler = 310 - model.get_vocab_size()
    model.add_special_tokens([*(f"<filler_{i}>" for i in range(filler)), *ADDED_TOKENS[:10]])
    model.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).ids["<im_patch>"] == 312 == model.token_to_id("<im_patch>")


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a directory that holds a tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        Tokenizer.load(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"lacks the chat tokens <\|im_start\|>, <\|im_end\|>"):
        Tokenizer.load(tmp_path, base_size=300)
    with pytest.raises(ValueError, match="base_size=100 is too small"):
        train_tokenizer(["x"], tmp_path, 100)


def test_a_base_size_below_the_ids_is_refused(tmp_path: Path) -> None:
    train_tokenizer(["one two three two three"] * 5, tmp_path, 300)
    with pytest.raises(ValueError, match="base_size=262 is too small"):
        Tokenizer.load(tmp_path, base_size=262)


def _with_added(folder: Path, tokens: list[str], first: int) -> None:
    """A tokenizer.json in the folder with these added tokens from id `first` on."""
    train_tokenizer(["x"], folder, 300)
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    filler = first - model.get_vocab_size()
    model.add_special_tokens([*(f"<filler_{i}>" for i in range(filler)), *tokens])
    model.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("base_size", [310, None])
def test_vision_tokens_elsewhere_are_refused(tmp_path: Path, base_size: int | None) -> None:
    swapped = [*ADDED_TOKENS[:10]]
    swapped[1], swapped[2] = swapped[2], swapped[1]
    for tokens, named in (
        (swapped, "see <im_end>, <im_patch>"),
        (list(ADDED_TOKENS[:9]), r"see <\|video\|>"),
        ([*ADDED_TOKENS[:10], "<|vit_loc|>"], r"see <\|vit_loc\|>"),
    ):
        _with_added(tmp_path, tokens, 310)
        with pytest.raises(ValueError, match=f"not in Molmo2's order from id 310 on .{named}"):
            Tokenizer.load(tmp_path, base_size)
    _with_added(tmp_path, list(ADDED_TOKENS), 310)
    assert Tokenizer.load(tmp_path, base_size).ids["<|vit_loc|>"] == 323
    with pytest.raises(ValueError, match="not in Molmo2's order from id 320 on"):
        Tokenizer.load(tmp_path, 320)


def test_an_olmo_like_tokenizer_has_its_own_bos(tmp_path: Path) -> None:
    """Chat tokens are found by name, and the tokenizer's own bos_token, if it has one, begins a prompt."""
    train_tokenizer(["one two three"] * 5, tmp_path, 300)
    chat = Tokenizer.load(tmp_path)
    assert chat.bos == chat.eos == chat.encode("<|im_end|>")[0]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for bos in ("<|endoftext|>", {"content": "<|endoftext|>", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": bos}))
        own = Tokenizer.load(tmp_path)
        assert own.bos == own.encode("<|endoftext|>")[0] != own.eos == chat.eos
        own.save(tmp_path / "again")
        assert Tokenizer.load(tmp_path / "again").bos == own.bos
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    with pytest.raises(ValueError, match="lacks its own bos_token '<s>'"):
        Tokenizer.load(tmp_path)
    for text, cause in (
        ("{", " is not valid JSON"),
        ("[" * 100_000, " is not valid JSON"),
        ("[]", ": is no JSON object"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(ValueError, match=f"tokenizer_config.json{cause}"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is not valid JSON"):
        Tokenizer.load(tmp_path)


def test_export_keeps_every_id(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_hf(tmp_path)
    model = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {t: model.token_to_id(t) for t in ADDED_TOKENS} == tokenizer.ids
    assert model.get_vocab_size() == tokenizer.size
    assert model.encode("a<im_patch>b", add_special_tokens=False).ids[1] == tokenizer.ids["<im_patch>"]
    again = Tokenizer.load(tmp_path)
    assert (again.base_size, again.ids, again.bos) == (tokenizer.base_size, tokenizer.ids, tokenizer.bos)
    assert again.encode("What color?") == tokenizer.encode("What color?")
    again.save_hf(tmp_path / "twice")
    assert (tmp_path / "twice" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    tokenizer.save(tmp_path / "plain")  # the export did not change the tokenizer itself
    assert max(Tokenizer.load(tmp_path / "plain").encode("<im_patch>")) < tokenizer.base_size


def test_a_vocabulary_with_gaps_cannot_be_exported(tmp_path: Path) -> None:
    train_tokenizer(["x"], tmp_path, 300)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"][last] += 5
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="because its vocabulary has gaps; export with the tokenizer files"):
        Tokenizer.load(tmp_path, 300).save_hf(tmp_path / "out")


@pytest.mark.torch
def test_transformers_loads_the_export(qwen: Tokenizer, real_files: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    qwen.save_hf(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(theirs) == qwen.size == 151_950
    assert theirs.convert_tokens_to_ids(list(ADDED_TOKENS)) == list(range(151_936, 151_950))
    dummies = [f"|<EXTRA_TOKENS_{i}>|" for i in range(267)]
    assert theirs.convert_tokens_to_ids(dummies) == list(range(151_669, 151_936))
    assert theirs.eos_token_id == qwen.eos == 151_645 and theirs.pad_token_id == 151_643
    assert theirs.bos_token is None  # Molmo2's processor takes EOS then
    for case in json.loads((real_files / "tokenizer" / "golden_ids.json").read_text()):
        assert theirs.encode(case["text"], add_special_tokens=False) == case["input_ids"]
    chat = "<|im_end|>0.0 <frame_start><im_patch><frame_end><|im_start|>user\nWhat?<|im_end|>\n"
    ids = [qwen.eos, *qwen.encode("0.0 "), *(qwen.ids[t] for t in ("<frame_start>", "<im_patch>", "<frame_end>"))]
    assert theirs.encode(chat, add_special_tokens=False) == ids + qwen.encode("<|im_start|>user\nWhat?<|im_end|>\n")


def test_qwen_facts(qwen: Tokenizer) -> None:
    """As measured on the released file: digits one by one, words with their blank, letters of options."""
    expected = {"A": [32], " A": [362], "A.": [32, 13], "yes": [9693], "no": [2152], "<|im_start|>": [151_644]}
    assert {text: qwen.encode(text) for text in expected} == expected
    assert len(qwen.encode("00:15")) == 5 and qwen.encode("(A)")[0] == 4346
    assert 4 <= len(qwen.encode("<im_start>")) <= 5  # not the vision token of that name


@given(st.text(), st.lists(st.integers(1, 4), max_size=60))
def test_a_stream_says_what_all_ids_say(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    """Whatever the pieces are, none ends inside of a character, also where ids are no whole text."""
    ids = tokenizer.encode(text)
    for cut in (ids, ids[1:], ids[:-1], ids[::-1], [*ids, tokenizer.eos]):
        stream, rest, pieces = TextStream(tokenizer), list(cut), []
        for size in sizes:
            pieces.append(stream.put(rest[:size]))
            rest = rest[size:]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        pieces.append(stream.put(rest, last=True))
        assert "".join(pieces) == tokenizer.decode(cut)


def test_a_character_of_several_ids_is_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀b")
    assert len(ids) == 6
    stream = TextStream(tokenizer)
    assert [stream.put([i]) for i in ids] == ["a", "", "", "", "😀", "b"]
    assert (stream.put(ids[1:3]), stream.put([], last=True)) == ("", "\ufffd")
