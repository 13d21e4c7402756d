"""The tokenizer of a run: it lies in the workdir, so that the run's checkpoints can be read with nothing else."""

from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.config import DataConfig
from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.record import RecordError
from sttts_jax.data.sources.registry import Records, open_source
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.train.config import RunConfig

TEXT_RECORDS = 2000


def run_tokenizer(config: RunConfig, workdir: Workdir) -> Tokenizer:
    """The tokenizer in the workdir. The first start copies the one of the config or of `init_from` there, or trains one
    on the text of the run's sources.
    """
    kept = workdir.tokenizer
    if (kept / "tokenizer.json").exists():
        return Tokenizer.load(kept)
    base = config.vlm.llm.vocab
    source = config.tokenizer or (config.init_from and _tokenizer_of(config.init_from))
    if not source:
        return train_tokenizer(_texts(config.data), kept, base)
    tokenizer = Tokenizer.load(source, base)
    tokenizer.save(kept)
    return tokenizer


def _tokenizer_of(init_from: str) -> str:
    place = Workdir.of_step(resolve_step(init_from)).tokenizer
    if not (place / "tokenizer.json").exists():
        raise ValueError(f"init_from={init_from}: {place} holds no tokenizer.json; set `tokenizer` to where it lies")
    return str(place)


def _texts(config: DataConfig) -> list[str]:
    """What the model reads and says of the first records of every source, and the names of the chat's roles."""
    texts: list[str] = []
    for records in map(open_source, config.sources):
        for index in range(min(len(records), TEXT_RECORDS)):
            texts += _record_texts(records, index)
    return texts


def _record_texts(records: Records, index: int) -> list[str]:
    """None of a bad record, which is named when the training comes to it."""
    try:
        messages = records[index].messages
        return [
            text
            for message in messages
            for text in ("user\n", user_text(message), "assistant\n", target_text(message), *message.options)
        ]
    except RecordError:
        return []
