"""Things that several data tests share."""

from pathlib import Path

import pytest

from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.record import Message
from sttts_jax.data.sources.shapes_video_qa import make_script
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from tests.shared_files import DATA, NO_DATA


@pytest.fixture(scope="session")
def real_files() -> Path:
    """The folder of real videos and tokenizer files."""
    if not DATA.is_dir():
        pytest.skip(NO_DATA)
    return DATA


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Small, trained on the questions of a few clips."""
    messages = [Message(q.question, q.answer, q.style, q.options) for seed in range(20) for q in make_script(seed)[1]]
    texts = [f"{user_text(m)} {target_text(m)}" for m in messages]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), base_size=512)


@pytest.fixture(scope="session")
def data_dir(clips: Path) -> str:
    return str(clips)
