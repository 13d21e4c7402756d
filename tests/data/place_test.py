"""A run goes on with its data wherever that lies, and with no other."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from sttts_jax.data.config import Source, data_config
from sttts_jax.data.pipeline import train_batches
from sttts_jax.data.place import check_same_data, identity, rooted, without_place
from sttts_jax.data.tokenizer import Tokenizer


def test_paths_of_a_config_become_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rooted(("jsonl:my/a.jsonl", 2.0, "train[:90%]")) == (f"jsonl:{tmp_path}/my/a.jsonl", 2.0, "train[:90%]")
    assert rooted(["shapes_video_qa", 1.0, "train", "data"]) == ("shapes_video_qa", 1.0, "train", f"{tmp_path}/data")
    assert rooted(("jsonl:a:b.jsonl",)) == (f"jsonl:{tmp_path}/a:b.jsonl",)
    for same in (("shapes_video_qa", 1.0, "train", "~/data"), ("jsonl:gs://bucket/a.jsonl",), ("jsonl:~/a.jsonl", 1.0)):
        assert rooted(same) == same


def test_what_a_source_is_wherever_it_lies() -> None:
    assert (
        without_place(("jsonl:/a/b.jsonl", 1, "train"))
        == without_place(["jsonl:c.jsonl", 1.0])
        == ["jsonl:", 1.0, "train"]
    )
    assert without_place(("shapes_video_qa", 1.0, "test", "/data")) == ["shapes_video_qa", 1.0, "test"]


def _of(name: str, fingerprint: str = "f", data_dir: str = "/data", **changes: Any) -> list[dict[str, Any]]:
    own = identity(Source(name, 1.0, "train", data_dir), 9, fingerprint)
    return [json.loads(json.dumps({**own, **changes}))]


def test_moved_data_is_told_from_other_data(caplog: pytest.LogCaptureFixture) -> None:
    saved = _of("jsonl:/a/x.jsonl")
    check_same_data(saved, saved)
    check_same_data(saved, _of("jsonl:/b/y.jsonl"))
    check_same_data(_of("shapes"), _of("shapes", data_dir="/elsewhere"))
    assert not caplog.records
    check_same_data(saved, _of("jsonl:/a/x.jsonl", "edited"))
    assert "/a/x.jsonl was edited since the checkpoint" in caplog.text
    for other, said in (
        (
            _of("jsonl:/b/x.jsonl", "other"),
            "is of other data: jsonl:/a/x.jsonl was .* and jsonl:/b/x.jsonl holds",
        ),
        (_of("jsonl:/a/x.jsonl", records=10), "the saved data position has records=9 of .* and this run 10"),
        (_of("jsonl:/a/x.jsonl", split="test"), "the saved data position has split='train'"),
        (_of("jsonl:/a/x.jsonl", weight=2.0), "the saved data position has weight=1.0"),
        (saved * 2, "has 1 sources and this run 2"),
    ):
        with pytest.raises(ValueError, match=said):
            check_same_data(saved, other)


def test_positions_without_fingerprints_go_on_with_data_of_their_name(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("jsonl:/home/me/my/x.jsonl", "jsonl:my/x.jsonl", "jsonl:./my/x.jsonl"):
        check_same_data([[name, "train", 1.0, 9]], _of("jsonl:/home/me/my/x.jsonl"))
    check_same_data([["shapes", "train", 1.0, 9]], _of("shapes"))
    assert not caplog.records
    with pytest.raises(ValueError, match="is of other data"):
        check_same_data([["jsonl:your/x.jsonl", "train", 1.0, 9]], _of("jsonl:/home/me/my/x.jsonl"))


def test_a_stream_goes_on_where_its_file_lies_now(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.dumps({"messages": [{"question": f"Q{n}", "answer": str(n)}]}) for n in range(9)]
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(rows))

    def stream(path: Path) -> Any:
        sources = ((f"jsonl:{path}", 1.0, "train"),)
        return train_batches(data_config(sources=sources, image_size=24, row_length=900, rows=2), tokenizer)

    first = stream(file)
    next(first)
    state = json.loads(json.dumps(first.get_state()))
    want = next(first)["tokens"]
    moved = Path(os.rename(file, tmp_path / "moved.jsonl") or tmp_path / "moved.jsonl")
    again = stream(moved)
    again.set_state(state)
    assert (next(again)["tokens"] == want).all()
    moved.write_text("\n".join(reversed(rows)))
    with pytest.raises(ValueError, match="is of other data"):
        stream(moved).set_state(state)
    file.write_text("\n".join(reversed(rows)))
    with caplog.at_level(logging.WARNING, "sttts_jax.data"):
        stream(file).set_state(state)
    assert "set.jsonl was edited since the checkpoint" in caplog.text
