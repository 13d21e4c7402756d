"""A training run from the command to its last state. `main` reads top to bottom; each line is a file of its own."""

from typing import Any

import ml_collections

from sttts_jax import distributed
from sttts_jax.ckpt.content import check_tokenizer
from sttts_jax.ckpt.lease import sole_owner
from sttts_jax.ckpt.meta import check_config
from sttts_jax.ckpt.restore import read_meta
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.compile_cache import use_compile_cache
from sttts_jax.compiler_flags import set_compiler_flags
from sttts_jax.data.place import rooted
from sttts_jax.paths import PathLike
from sttts_jax.train.clock import Clock
from sttts_jax.train.config import RunConfig
from sttts_jax.train.loop import train
from sttts_jax.train.process_log import process_log
from sttts_jax.train.run import Evaluate, Evaluator, Run, Start, first_state, prepare
from sttts_jax.train.state import TrainState
from sttts_jax.train.tokenizer import run_tokenizer


def main(
    config: ml_collections.ConfigDict, workdir: PathLike, *, evaluator: Evaluator | None = None, out: Any = None
) -> TrainState:
    """Trains to `total_steps`; a workdir with checkpoints is continued. Returns the last state, on the mesh.

    evaluator   what `evaluation` in the config needs, such as `evals.while_training`'s
    out         a text file for the console's lines (standard output)

    Everything that can be checked without a device is checked before one is touched: raises ValueError with one
    sentence.
    """
    clock = Clock()
    set_compiler_flags()
    raw = with_rooted_data(config.to_dict())
    checked, place = RunConfig.build(raw), Workdir(workdir)
    with distributed.joined(checked.distributed):
        _check_same_run(place, raw)
        evaluate = _evaluate(checked, evaluator)
        use_compile_cache(checked.compile_cache)
        with sole_owner(place), process_log(place):
            run = prepare(checked, raw, place, run_tokenizer(checked, place))
            return train(run, _restored(run, clock), evaluate, out, clock)


def _restored(run: Run, clock: Clock) -> Start:
    with clock.measure("restore"):
        return first_state(run)


def with_rooted_data(raw: dict[str, Any]) -> dict[str, Any]:
    """A config whose data is found from any directory: that of a workdir, wherever it is evaluated or goes on."""
    data = raw.get("data", {})
    sources = tuple(map(rooted, data.get("sources", ())))
    return {**raw, "data": {**data, "sources": sources}} if sources else raw


def _evaluate(config: RunConfig, evaluator: Evaluator | None) -> Evaluate | None:
    """What evaluates during the training; None where the config wants nothing."""
    if not config.evaluation.every:
        return None
    if evaluator is None:
        raise ValueError(
            f"evaluation.every={config.evaluation.every} needs an evaluator: train by `sttts-jax train` or "
            "sttts_jax.api.train, or set it to 0"
        )
    return evaluator(config)


def _check_same_run(workdir: Workdir, raw: dict[str, Any]) -> None:
    """Raises ConfigMismatch with a table where the workdir belongs to a run of another config, ValueError where its
    tokenizer was changed.
    """
    if not workdir.checkpoints.exists():
        return
    try:
        meta = read_meta(workdir.checkpoints)
    except (FileNotFoundError, ValueError):
        return  # nothing whole there: restoring says what is wrong, if anything is
    check_config(meta, raw)
    check_tokenizer(meta, workdir)
