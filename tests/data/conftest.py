"""Things that several data tests share. Real files come from STTTS_TEST_DATA or ../shared/data, and tests skip
without them.
"""

import os
from pathlib import Path

import pytest

from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.record import Message
from sttts_jax.data.sources import registry
from sttts_jax.data.sources.shapes_video_qa import make_script
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def real_files() -> Path:
    """The folder of real videos and tokenizer files."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("STTTS_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("needs real data files; set STTTS_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Small, trained on the questions of a few clips."""
    messages = [Message(q.question, q.answer, q.style, q.options) for seed in range(20) for q in make_script(seed)[1]]
    texts = [f"{user_text(m)} {target_text(m)}" for m in messages]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), base_size=512)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Holds shapes_video_qa with 24 training, 4 validation and 8 test clips."""
    folder = str(tmp_path_factory.mktemp("data"))
    registry.build("shapes_video_qa", folder, {"train": 24, "validation": 4, "test": 8})
    return folder
