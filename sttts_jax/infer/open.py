"""From a directory to a checkpoint that answers: a run's workdir, a converted checkpoint, or one step."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from sttts_jax.ckpt.content import check_tokenizer, content_digest
from sttts_jax.ckpt.meta import fresh_leaves, saved_config
from sttts_jax.ckpt.restore import PARAMS, load_params, read_step_meta
from sttts_jax.ckpt.whole import whole_step
from sttts_jax.ckpt.workdir import Workdir
from sttts_jax.compile_cache import use_compile_cache
from sttts_jax.compiler_flags import set_compiler_flags
from sttts_jax.data.tokenizer import Tokenizer
from sttts_jax.infer.checkpoint import Checkpoint, all_devices
from sttts_jax.infer.model import Model
from sttts_jax.models.vit import SCORER_LEAVES
from sttts_jax.paths import PathLike, as_path
from sttts_jax.sharding import abstract_state
from sttts_jax.train.config import DTYPES, RunConfig
from sttts_jax.train.state import build_model, init_params

LOG = logging.getLogger("sttts_jax.infer")


def open_checkpoint(directory: PathLike, dtype: str = "", method: str | None = None) -> Model:
    """A checkpoint that answers questions about videos and images while you wait, see `infer.model.Model`.

        scene = open_checkpoint("runs/demo/scorer").watch("clip.mp4", pruned_fraction="0.5")
        print(scene.ask("What happens at the end?").text)

    directory  a run's workdir, a converted checkpoint, or one step; of the first two the newest whole step
    dtype      of the compute, "float32" or "bfloat16"; "" as in training. CPUs are faster in float32
    method     of pruning, see `read_checkpoint`

    Weights are read when the first question is asked. Raises FileNotFoundError without a checkpoint, ValueError for an
    unknown dtype or method, and where the checkpoint is damaged or its tokenizer is missing.
    """
    checkpoint = read_checkpoint(directory, method)
    if dtype not in ("", *DTYPES):
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    return Model(dataclasses.replace(checkpoint, dtype=DTYPES[dtype]) if dtype else checkpoint)


def read_checkpoint(directory: PathLike, method: str | None = None) -> Checkpoint:
    """The newest whole step of a run's workdir or of a directory of steps, or one step; read on demand, config first.

    method  of pruning, a name of `pruning.config`: "random", "easy" and "reference_tracking" need no training and prune
            any checkpoint; None: as trained

    Says on stderr where a scorer was never trained. Raises FileNotFoundError without a checkpoint, ValueError where it
    is damaged, its tokenizer is missing, or the method is unknown or needs a scorer that is not there.
    """
    set_compiler_flags()
    step = whole_step(directory)
    meta = read_step_meta(step)
    raw = saved_config(meta)
    config, workdir = RunConfig.build(raw), Workdir.of_step(step)
    check_tokenizer(meta, workdir)
    use_compile_cache(config.compile_cache)

    def load(mesh: jax.sharding.Mesh) -> Any:
        shape = config.data.row_shape
        model = build_model(config.model, config.pruning, shape, mesh.devices.flat[0].platform)
        boxed = jax.eval_shape(lambda key: init_params(model, shape, key), jax.random.key(0))
        return load_params(step, abstract_state(boxed, mesh))

    checkpoint = checkpoint_of(config, raw, workdir, _tokenizer(workdir, config), load, step=int(meta["step"]))
    typed = str(directory if as_path(directory) == workdir.root else workdir.root)
    content = functools.partial(content_digest, step / PARAMS, workdir.tokenizer)
    checkpoint = dataclasses.replace(checkpoint, directory=typed, content=content)
    checkpoint = checkpoint if method is None else checkpoint.with_method(method)
    if checkpoint.pruning.has_scorer and any(name.startswith(SCORER_LEAVES) for name in fresh_leaves(meta)):
        LOG.warning(
            "%s: its scorer is fresh and was never trained, so what it keeps means nothing; train it, or prune with "
            "--method easy, random or reference_tracking",
            typed,
        )
    return checkpoint


def checkpoint_of(
    config: RunConfig,
    raw_config: dict[str, Any],
    workdir: Workdir,
    tokenizer: Tokenizer,
    load: Callable[[jax.sharding.Mesh], Any],
    *,
    step: int,
    place: Callable[[], jax.sharding.Mesh] = all_devices,
) -> Checkpoint:
    """A run as a checkpoint: its model, its data settings, and what `load` and `place` give, see `Checkpoint`; without
    a digest.
    """
    return Checkpoint(
        name=workdir.root.name,
        directory=str(workdir.root),
        step=step,
        config=raw_config,
        vlm=config.vlm,
        pruning=config.pruning,
        data=config.data,
        dtype=DTYPES[config.model.dtype],
        attention=config.model.attention,
        tokenizer=tokenizer,
        load=load,
        content=_no_content,
        place=place,
    )


def _no_content() -> str:
    raise AssertionError("the weights of a run that trains change with every step; read a checkpoint of it")


def _tokenizer(workdir: Workdir, config: RunConfig) -> Tokenizer:
    kept = workdir.tokenizer
    if not (kept / "tokenizer.json").exists():
        raise ValueError(f"{kept}: holds no tokenizer.json; copy the tokenizer directory of the run there")
    return Tokenizer.load(kept, config.vlm.llm.vocab)
