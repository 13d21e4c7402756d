"""Ids of text and of the vision tokens."""

import json
from pathlib import Path

import pytest
import tokenizers

from sttts_jax.data.tokenizer import ADDED_TOKENS, VISION_TOKENS, Tokenizer, train_tokenizer


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
