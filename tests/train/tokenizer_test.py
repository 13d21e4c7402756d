"""The tokenizer that a first start trains on the run's own text."""

import json
from pathlib import Path

import pytest

from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.train.config import RunConfig
from sttts_jax.train.tokenizer import run_tokenizer
from tests.tiny import tiny_config

GOOD = [{"messages": [{"question": f"What is {word}?", "answer": word}]} for word in ("red", "green", "blue")]
CHOICE = {"question": "Which?", "answer": "none of them", "style": "video_multiple_choice", "options": ["a", "b"]}
BAD = [
    "not json",
    json.dumps({"messages": [{"question": None}]}),
    json.dumps({"messages": [CHOICE]}),
    "[]",
    "caf\u00e9",
]


def test_bad_records_are_no_part_of_it(tmp_path: Path) -> None:
    """The same tokenizer as without them: they are named when the training comes to them."""
    good = [json.dumps(record).encode() for record in GOOD]
    bad = [line.encode("cp1252") for line in BAD]
    files = []
    for name, lines in (("good", good), ("mixed", [bad[0], good[0], *bad[1:4], good[1], bad[4], good[2]])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(lines))
        config = tiny_config(tmp_path)
        config.data.sources = ((f"jsonl:{tmp_path / name}.jsonl", 1.0, "train"),)
        run_tokenizer(RunConfig.build(config), Workdir(tmp_path / name))
        files.append((tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join(BAD[:4]))
    config = tiny_config(tmp_path)
    config.data.sources = ((f"jsonl:{tmp_path}/bad.jsonl", 1.0, "train"),)
    with pytest.raises(ValueError, match=r"no record can be used, .* \(the first: .*/bad.jsonl:1: is not JSON"):
        run_tokenizer(RunConfig.build(config), Workdir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
