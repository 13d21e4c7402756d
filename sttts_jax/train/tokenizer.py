"""The tokenizer of a run: it lies in the workdir, so that the run's checkpoints can be read with nothing else."""

import jax
from etils import epath

from sttts_jax.ckpt.content import check_tokenizer
from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.restore import read_step_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.config import DataConfig
from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.record import Record, RecordError
from sttts_jax.data.sources.registry import open_source
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.distributed import gather_json
from sttts_jax.train.config import RunConfig

TEXT_RECORDS = 2000


def run_tokenizer(config: RunConfig, workdir: Workdir) -> Tokenizer:
    """The tokenizer in the workdir. The first start copies the one of the config or of `init_from` there, or trains one
    on the text of the run's sources: the first process does it, while the others wait. All of them must ask.

    Raises ValueError, in every process, where none can be made.
    """
    problem = ""
    if jax.process_index() == 0 and not (workdir.tokenizer / "tokenizer.json").exists():
        problem = _problem_of_making(config, workdir.tokenizer)
    problem = gather_json(problem)[0]
    if problem:
        raise ValueError(problem)
    return Tokenizer.load(workdir.tokenizer)


def _problem_of_making(config: RunConfig, kept: epath.Path) -> str:
    """Why the tokenizer could not be made, for the processes that wait for it; '' where it was. A process alone raises
    what it met.
    """
    try:
        _make(config, kept)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        return str(error) or type(error).__name__
    return ""


def _make(config: RunConfig, kept: epath.Path) -> None:
    base = config.vlm.llm.vocab
    source = config.tokenizer or (config.init_from and _tokenizer_of(config.init_from))
    if source:
        Tokenizer.load(source, base).save(kept)
    else:
        train_tokenizer(_texts(config.data), kept, base)


def _tokenizer_of(init_from: str) -> str:
    step = resolve_step(init_from)
    workdir = Workdir.of_step(step)
    place = workdir.tokenizer
    if not (place / "tokenizer.json").exists():
        raise ValueError(f"init_from={init_from}: {place} holds no tokenizer.json; set `tokenizer` to where it lies")
    check_tokenizer(read_step_meta(step), workdir)
    return str(place)


def _texts(config: DataConfig) -> list[str]:
    """What the model reads and says of the first records of every source, and the names of the chat's roles.

    Bad records are left out; the training names them. Raises ValueError where all are bad: a tokenizer of nothing would
    stay in the workdir.
    """
    texts: list[str] = []
    problem = None
    opened = list(map(open_source, config.sources))
    for records, index in ((r, index) for r in opened for index in range(min(len(r), TEXT_RECORDS))):
        try:
            texts += _record_texts(records[index])
        except RecordError as error:
            problem = problem or error
    if not texts:
        raise ValueError(
            f"no record can be used, so there is nothing to train on; mend the data (the first: {problem})"
        )
    return texts


def _record_texts(record: Record) -> list[str]:
    return [
        text
        for message in record.messages
        for text in ("user\n", user_text(message), "assistant\n", target_text(message), *message.options)
    ]
