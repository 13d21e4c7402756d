"""From a config and a workdir to a running loop."""

from typing import Any

import ml_collections

from sttts_jax import distributed
from sttts_jax.ckpt.files import resolve_step
from sttts_jax.ckpt.meta import check_config
from sttts_jax.ckpt.restore import read_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.data.config import DataConfig
from sttts_jax.data.prompt import target_text, user_text
from sttts_jax.data.sources.registry import open_source
from sttts_jax.data.tokenizer import Tokenizer, train_tokenizer
from sttts_jax.train.config import RunConfig
from sttts_jax.train.loop import train
from sttts_jax.train.run import prepare
from sttts_jax.train.state import TrainState

TEXT_RECORDS = 2000


def start(config: ml_collections.ConfigDict, workdir: str, out: Any = None) -> TrainState:
    """Checks everything that can be checked without a device, then trains; a workdir with checkpoints is continued."""
    run = RunConfig.build(config)
    raw = config.to_dict()
    place = Workdir(workdir)
    if place.checkpoints.exists():
        _check_same_run(place, raw)
    distributed.init(run.distributed)
    tokenizer = run_tokenizer(run, place)
    return train(prepare(run, place, raw, tokenizer), out)


def _check_same_run(workdir: Workdir, raw: dict[str, Any]) -> None:
    try:
        meta = read_meta(workdir.checkpoints)
    except (FileNotFoundError, ValueError):
        return  # nothing whole there: restoring says what is wrong, if anything is
    check_config(meta, raw)


def run_tokenizer(run: RunConfig, workdir: Workdir) -> Tokenizer:
    """The tokenizer in the workdir. The first start copies the one of the config or of `init_from` there, or trains one
    on the text of the run's sources.
    """
    kept = workdir.tokenizer
    if (kept / "tokenizer.json").exists():
        return Tokenizer.load(kept)
    base = run.vlm.llm.vocab
    source = run.tokenizer or (run.init_from and _tokenizer_of(run.init_from))
    if not source:
        return train_tokenizer(_texts(run.data), kept, base)
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
    texts = []
    for source in config.sources:
        records = open_source(source)
        for index in range(min(len(records), TEXT_RECORDS)):
            for message in records[index].messages:
                texts += ["user\n", user_text(message), "assistant\n", target_text(message), *message.options]
    return texts
